// Copies between the device and page-locked host memory on a stream of their own, while the device's stream computes.
// One stream for both directions: what is written back from a place is out before the next is loaded into it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>

#include "cuda/device.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

class SideCopies {
 public:
  explicit SideCopies(std::shared_ptr<Device> device);
  ~SideCopies();
  SideCopies(const SideCopies&) = delete;
  SideCopies& operator=(const SideCopies&) = delete;

  /// After all work and copies given so far.
  CopyTicket copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
  void wait_for(const CopyTicket& copy);
  void finish(const CopyTicket& copy);
  void synchronize();

 private:
  class Events;

  std::shared_ptr<Device> device_;
  std::shared_ptr<Events> events_;  // shared with the tickets, which give their events back
  cudaStream_t stream_ = nullptr;
  cudaEvent_t work_given_ = nullptr;
};

/// Page-locked, of zeros. DeviceError where there is no more.
std::shared_ptr<void> allocate_page_locked(std::size_t bytes);

}  // namespace fedpdpo::cuda
