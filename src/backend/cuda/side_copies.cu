// The copy stream: events order it after the work, and the work after a copy where that is asked for.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda/side_copies.hpp"
#include "cuda/status.hpp"
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo::cuda {
namespace {

cudaEvent_t make_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return event;
}

}  // namespace

/// Events to be used again: the steady state makes none.
class SideCopies::Events {
 public:
  ~Events() {
    for (cudaEvent_t event : idle_) (void)cudaEventDestroy(event);
  }
  cudaEvent_t take() {
    if (idle_.empty()) return make_event();
    cudaEvent_t event = idle_.back();
    idle_.pop_back();
    return event;
  }
  void give_back(cudaEvent_t event) { idle_.push_back(event); }

 private:
  std::vector<cudaEvent_t> idle_;
};

SideCopies::SideCopies(std::shared_ptr<Device> device)
    : device_(std::move(device)), events_(std::make_shared<Events>()), work_given_(make_event()) {
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}

SideCopies::~SideCopies() {
  if (stream_ != nullptr) {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaStreamDestroy(stream_);
  }
  (void)cudaEventDestroy(work_given_);
}

CopyTicket SideCopies::copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return {};
  check_cuda(cudaEventRecord(work_given_, device_->stream()), "cudaEventRecord");
  check_cuda(cudaStreamWaitEvent(stream_, work_given_, 0), "cudaStreamWaitEvent");
  check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync beside the work");
  std::shared_ptr<void> event(events_->take(),
                              [events = events_](void* used) { events->give_back(static_cast<cudaEvent_t>(used)); });
  check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event.get()), stream_), "cudaEventRecord");
  return {std::move(event)};
}

void SideCopies::wait_for(const CopyTicket& copy) {
  if (copy.event)
    check_cuda(cudaStreamWaitEvent(device_->stream(), static_cast<cudaEvent_t>(copy.event.get()), 0),
               "cudaStreamWaitEvent");
}

void SideCopies::finish(const CopyTicket& copy) {
  if (copy.event) check_cuda(cudaEventSynchronize(static_cast<cudaEvent_t>(copy.event.get())), "cudaEventSynchronize");
}

void SideCopies::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

std::shared_ptr<void> allocate_page_locked(std::size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, std::max<std::size_t>(bytes, 1), cudaHostAllocDefault);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    throw DeviceError("CUDA: no page-locked host memory: cudaHostAlloc of " + std::to_string(bytes >> 20) +
                      " MiB: " + cudaGetErrorName(status));
  }
  std::memset(memory, 0, bytes);
  return {memory, [](void* p) { (void)cudaFreeHost(p); }};
}

}  // namespace fedpdpo::cuda
