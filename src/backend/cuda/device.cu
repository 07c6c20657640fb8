// The device's stream, memory and copies; and what devices there are.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cuda/device.hpp"
#include "cuda/side_copies.hpp"
#include "cuda/status.hpp"
#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"

namespace fedpdpo {

CudaDevices cuda_devices() {
  CudaDevices found;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();  // it is reported here, and must not surface in a later call
    return {{}, std::string("no CUDA device: ") + cudaGetErrorString(status)};
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    cuda::check_cuda(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
    found.devices.push_back({properties.name, properties.totalGlobalMem});
  }
  if (count == 0) found.why_none = "no CUDA device";
  return found;
}

}  // namespace fedpdpo

namespace fedpdpo::cuda {

Staging::Staging(cudaStream_t stream) : stream_(stream), memory_(allocate_page_locked(kSlots * kSlotBytes)) {
  for (cudaEvent_t& event : emptied_)
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

Staging::~Staging() {
  (void)cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : emptied_)
    if (event != nullptr) (void)cudaEventDestroy(event);
}

void Staging::copy(void* device, const void* host, std::size_t bytes) {
  auto* to = static_cast<std::byte*>(device);
  const auto* from = static_cast<const std::byte*>(host);
  while (bytes > 0) {
    if (used_ == kSlotBytes) {
      check_cuda(cudaEventRecord(emptied_[slot_], stream_), "cudaEventRecord");
      slot_ = (slot_ + 1) % kSlots;
      // An event that was never recorded counts as done.
      check_cuda(cudaEventSynchronize(emptied_[slot_]), "cudaEventSynchronize");
      used_ = 0;
    }
    const std::size_t part = std::min(bytes, kSlotBytes - used_);
    std::byte* place = static_cast<std::byte*>(memory_.get()) + slot_ * kSlotBytes + used_;
    std::memcpy(place, from, part);
    check_cuda(cudaMemcpyAsync(to, place, part, cudaMemcpyHostToDevice, stream_), "cudaMemcpyAsync to the device");
    // The next copy begins at a multiple of 16 bytes.
    used_ = std::min(kSlotBytes, used_ + (part + 15) / 16 * 16);
    to += part;
    from += part;
    bytes -= part;
  }
}

Device::Device(int index) {
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  description_ = std::string(properties.name) + ", " + std::to_string(properties.totalGlobalMem >> 30) + " GiB";
  char bus_id[32] = {};
  check_cuda(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, index), "cudaDeviceGetPCIBusId");
  identity_ = bus_id;
  int has_pools = 0;
  check_cuda(cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, index), "cudaDeviceGetAttribute");
  if (has_pools != 0) {
    // Memory that was given back stays with the process, rather than with the system at the next wait.
    check_cuda(cudaDeviceGetDefaultMemPool(&pool_, index), "cudaDeviceGetDefaultMemPool");
    std::uint64_t threshold = UINT64_MAX;
    check_cuda(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &threshold), "cudaMemPoolSetAttribute");
  } else {
    log_warning("CUDA: " + description_ + " has no memory pools: taking and giving back memory waits for its work");
  }
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  staging_ = std::make_unique<Staging>(stream_);
}

Device::~Device() {
  staging_.reset();
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

void Device::expect_no_capture(const char* what) const { check(!capturing_, what); }

std::shared_ptr<MemoryWatch> Device::watch_memory() {
  std::erase_if(watches_, [](const std::weak_ptr<MemoryWatch>& watch) { return watch.expired(); });
  auto watch = std::make_shared<MemoryWatch>(MemoryWatch{allocations_, false});
  watches_.push_back(watch);
  return watch;
}

void Device::to_device(void* device, const void* host, std::size_t bytes) {
  expect_no_capture("recorded work copies to the device");
  staging_->copy(device, host, bytes);
}

void* Device::allocate(std::size_t bytes) {
  expect_no_capture("recorded work allocates");
  void* memory = nullptr;
  const std::size_t wanted = std::max<std::size_t>(bytes, 1);
  // Without a pool, release() has waited for whatever used the memory before.
  const auto take = [&] {
    return pool_ != nullptr ? cudaMallocAsync(&memory, wanted, stream_) : cudaMalloc(&memory, wanted);
  };
  const std::string call = pool_ != nullptr ? "cudaMallocAsync" : "cudaMalloc";
  cudaError_t status = take();
  if (status == cudaErrorMemoryAllocation && pool_ != nullptr) {
    // What the pool keeps may be cut too small for this request: all that is free goes back to the system first.
    (void)cudaGetLastError();
    synchronize();
    check_cuda(cudaMemPoolTrimTo(pool_, 0), "cudaMemPoolTrimTo");
    status = take();
  }
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) free = total = 0;
    const std::string what = call + " of " + std::to_string(bytes >> 20) + " MiB, " + std::to_string(free >> 20) +
                             " of " + std::to_string(total >> 20) + " MiB free";
    check_cuda(status, what.c_str());
  }
  check_cuda(status, call.c_str());
  numbers_[memory] = ++allocations_;
  return memory;
}

void Device::release(void* memory) noexcept {
  if (memory == nullptr) return;
  if (const auto found = numbers_.find(memory); found != numbers_.end()) {
    for (const std::weak_ptr<MemoryWatch>& weak : watches_)
      if (const std::shared_ptr<MemoryWatch> watch = weak.lock(); watch && found->second <= watch->begun)
        watch->freed = true;
    numbers_.erase(found);
  }
  if (pool_ != nullptr) {
    (void)cudaFreeAsync(memory, stream_);
  } else {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaFree(memory);
  }
}

DeviceMemory Device::memory() const {
  DeviceMemory memory;
  check_cuda(cudaMemGetInfo(&memory.free, &memory.total), "cudaMemGetInfo");
  if (pool_ == nullptr) return memory;
  std::uint64_t reserved = 0, used = 0;
  check_cuda(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
  check_cuda(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
  memory.free += static_cast<std::size_t>(reserved - used);
  return memory;
}

void Device::to_host(void* host, const void* device, std::size_t bytes) {
  if (bytes == 0) return;
  expect_no_capture("recorded work copies to the host");
  check_cuda(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync to the host");
  synchronize();
}

void Device::synchronize() {
  expect_no_capture("recorded work waits");
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

}  // namespace fedpdpo::cuda
