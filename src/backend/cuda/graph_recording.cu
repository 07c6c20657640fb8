// Capturing and launching a graph.
#include "cuda/graph_recording.hpp"
#include "cuda/status.hpp"

namespace fedpdpo::cuda {

void GraphRecording::run(const std::function<void()>& work) {
  if (graph_ != nullptr && watch_->freed) {
    forget();
    warm_ = false;
  }
  if (graph_ == nullptr) {
    if (!warm_) {
      work();
      warm_ = true;
      return;
    }
    capture(work);
  }
  check_cuda(cudaGraphLaunch(graph_, device_->stream()), "cudaGraphLaunch");
}

void GraphRecording::capture(const std::function<void()>& work) {
  cudaStream_t stream = device_->stream();
  cudaGraph_t captured = nullptr;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  device_->set_capturing(true);
  try {
    work();
  } catch (...) {
    device_->set_capturing(false);
    if (cudaStreamEndCapture(stream, &captured) == cudaSuccess && captured != nullptr) (void)cudaGraphDestroy(captured);
    (void)cudaGetLastError();
    throw;
  }
  device_->set_capturing(false);
  check_cuda(cudaStreamEndCapture(stream, &captured), "cudaStreamEndCapture");
  const cudaError_t status = cudaGraphInstantiate(&graph_, captured, 0);
  (void)cudaGraphDestroy(captured);
  check_cuda(status, "cudaGraphInstantiate");
  watch_ = device_->watch_memory();
}

void GraphRecording::forget() noexcept {
  if (graph_ == nullptr) return;
  (void)cudaStreamSynchronize(device_->stream());  // it may be under way
  (void)cudaGraphExecDestroy(graph_);
  graph_ = nullptr;
  watch_.reset();
}

}  // namespace fedpdpo::cuda
