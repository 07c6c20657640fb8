// Recorded work as a CUDA graph: run once as it is, so that buffers have grown and products are planned, captured the
// second time, launched from then on; once memory that was there when it was captured has been freed, captured again.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <memory>

#include "cuda/device.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

class GraphRecording final : public Recording {
 public:
  explicit GraphRecording(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~GraphRecording() override { forget(); }
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;

  void run(const std::function<void()>& work);

 private:
  void capture(const std::function<void()>& work);
  void forget() noexcept;

  std::shared_ptr<Device> device_;
  bool warm_ = false;
  cudaGraphExec_t graph_ = nullptr;
  std::shared_ptr<MemoryWatch> watch_;
};

}  // namespace fedpdpo::cuda
