// One device and its stream: memory that is given back in the stream's order, so that what was launched before may
// still use it, and copies from the host that return at once, through a ring of pinned memory.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

/// Page-locked host memory through which pageable bytes reach the device: a slot is written again only after the copies
/// out of it are done, which the host waits for when it has run a whole ring ahead of the device.
class Staging {
 public:
  explicit Staging(cudaStream_t stream);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// `host` may be changed once this returns.
  void copy(void* device, const void* host, std::size_t bytes);

 private:
  static constexpr std::size_t kSlots = 8, kSlotBytes = std::size_t{1} << 19;

  cudaStream_t stream_;
  std::shared_ptr<void> memory_;
  std::array<cudaEvent_t, kSlots> emptied_{};
  std::size_t slot_ = 0, used_ = 0;
};

/// Tells whether memory that was there when the watch began has been freed since.
struct MemoryWatch {
  std::uint64_t begun = 0;
  bool freed = false;
};

class Device {
 public:
  explicit Device(int index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  cudaStream_t stream() const { return stream_; }
  /// Of at least one byte, not cleared, 256-byte aligned.
  void* allocate(std::size_t bytes);
  void release(void* memory) noexcept;
  void to_device(void* device, const void* host, std::size_t bytes);
  /// Waits for the copy, and so for all that was given before it.
  void to_host(void* host, const void* device, std::size_t bytes);
  void synchronize();
  std::shared_ptr<MemoryWatch> watch_memory();
  /// While work is captured nothing may be allocated, copied to or from the host, or waited for.
  void set_capturing(bool capturing) { capturing_ = capturing; }
  const std::string& description() const { return description_; }
  /// Its PCI bus id.
  const std::string& identity() const { return identity_; }
  /// Free for this process: what the system has, and what the pool holds unused.
  DeviceMemory memory() const;

 private:
  cudaStream_t stream_ = nullptr;
  void expect_no_capture(const char* what) const;

  cudaMemPool_t pool_ = nullptr;  // virtual devices may have none: then by cudaMalloc
  std::unique_ptr<Staging> staging_;
  std::string description_, identity_;
  bool capturing_ = false;
  std::uint64_t allocations_ = 0;
  std::map<void*, std::uint64_t> numbers_;  // of live allocations
  std::vector<std::weak_ptr<MemoryWatch>> watches_;
};

/// Device memory that grows when needed and never shrinks: the steady state allocates nothing.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~Scratch() { device_->release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get(std::size_t count) {
    if (count > capacity_) {
      const std::size_t wanted = count + count / 4;
      void* larger = device_->allocate(wanted * sizeof(T));
      device_->release(data_);
      data_ = static_cast<T*>(larger);
      capacity_ = wanted;
    }
    return data_;
  }

 private:
  std::shared_ptr<Device> device_;
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace fedpdpo::cuda
