// The emulated runtime: a queue for a stream's work, and device memory that the host cannot touch: outside of that work
// it is mapped without access, so that a host read of device memory ends the test.
#include "emulation.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};
struct EmulatedStream {
  std::deque<std::function<void()>> work;
  std::unique_ptr<EmulatedGraph> capture;  // while there is one, work goes into it
  bool asked = false;
  std::uint64_t given = 0, done = 0;
  bool computes = false;  // has had anything but copies
};
/// Done once the stream has done what it had been given when the event was recorded.
struct EmulatedEvent {
  std::shared_ptr<EmulatedStream> stream;
  std::uint64_t position = 0;
};

namespace emulation {

std::size_t heuristics_asked();

namespace {

int devices_at_start() {
  const char* text = std::getenv("FEDPDPO_EMULATED_DEVICES");
  return text == nullptr ? 1 : std::atoi(text);
}

int device_count = devices_at_start(), taken_device = 0;
/// 1 GiB, or $EMULATED_DEVICE_MIB.
std::size_t device_memory = [] {
  const char* mebibytes = std::getenv("EMULATED_DEVICE_MIB");
  return static_cast<std::size_t>(mebibytes == nullptr ? 1024 : std::strtoull(mebibytes, nullptr, 10)) << 20;
}();
std::size_t unseen_memory = 0, most_pinned = SIZE_MAX;
bool early_copies = std::getenv("FEDPDPO_EMULATED_EARLY_COPIES") != nullptr;
bool lost = false, busy = false, pools = true;
Counts counted;

// --- device memory

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

/// One reserved range, handed out from its beginning; freed pieces are used again for the same size. Under the address
/// sanitizer memory is malloc's instead, so that reads and writes outside of an allocation are seen.
class DeviceMemory {
 public:
  void* allocate(std::size_t bytes) {
    const std::size_t size = (bytes + 255) / 256 * 256;
    if (in_use_ + size > device_memory) return nullptr;
    in_use_ += size;
    if (kSanitized) {
      void* memory = std::aligned_alloc(256, size);
      sizes_[memory] = size;
      return memory;
    }
    if (base_ == nullptr) {
      void* range = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (range == MAP_FAILED) fail("no address space");
      base_ = static_cast<std::byte*>(range);
    }
    std::vector<void*>& free = free_[size];
    void* memory = nullptr;
    if (free.empty()) {
      if (top_ + size > kReserved) fail("more device memory than is reserved");
      memory = base_ + top_;
      top_ += size;
    } else {
      memory = free.back();
      free.pop_back();
    }
    sizes_[memory] = size;
    return memory;
  }
  void release(void* memory) {
    const auto found = sizes_.find(memory);
    if (found == sizes_.end()) fail("freed what was not allocated");
    in_use_ -= found->second;
    if (kSanitized) {
      std::free(memory);
    } else {
      free_[found->second].push_back(memory);
    }
    sizes_.erase(found);
  }
  void open() { protect(PROT_READ | PROT_WRITE); }
  void close() { protect(PROT_NONE); }
  std::size_t in_use() const { return in_use_; }
  std::size_t size_of(void* memory) { return sizes_.at(memory); }

 private:
  static constexpr std::size_t kReserved = std::size_t{4} << 30;
  void protect(int access) {
    if (!kSanitized && top_ > 0 && mprotect(base_, (top_ + 4095) / 4096 * 4096, access) != 0) fail("mprotect");
  }
  std::byte* base_ = nullptr;
  std::size_t top_ = 0, in_use_ = 0;
  std::map<void*, std::size_t> sizes_;
  std::map<std::size_t, std::vector<void*>> free_;
};

DeviceMemory memory;

std::map<cudaStream_t, std::shared_ptr<EmulatedStream>> streams;  // events may outlive a stream
std::map<const std::byte*, std::size_t> pinned;
int running = 0;  // work of one stream runs another's that it waits for

void run(EmulatedStream& stream, std::uint64_t position) {
  if (stream.done >= position) return;
  if (running++ == 0) memory.open();
  while (stream.done < position) {
    std::function<void()> work = std::move(stream.work.front());
    stream.work.pop_front();
    work();
    ++stream.done;
  }
  if (--running == 0) memory.close();
}

/// What a stream that is captured does not take, or what it would take into the graph without our meaning it.
void expect_no_capture(cudaStream_t stream, const char* what) {
  if (stream->capture) fail(what);
}
/// What no stream of the thread may be captured for (cudaStreamCaptureModeThreadLocal).
void expect_no_captures(const char* what) {
  for (const auto& [stream, state] : streams) expect_no_capture(stream, what);
}
/// A crashed kernel's error comes back from every later call.
cudaError_t sound() { return lost ? cudaErrorIllegalAddress : cudaSuccess; }

void drain(cudaStream_t stream) {
  expect_no_capture(stream, "a wait while work is captured");
  ++counted.waits;
  run(*stream, stream->given);
}

bool is_pinned(const void* place) {
  const auto* byte = static_cast<const std::byte*>(place);
  const auto next = pinned.upper_bound(byte);
  return next != pinned.begin() && byte < std::prev(next)->first + std::prev(next)->second;
}

void give(cudaStream_t stream, std::function<void()> work) {
  stream->work.push_back(std::move(work));
  ++stream->given;
}

std::map<const void*, std::size_t> memory_of_kernel;

}  // namespace

void set_device_count(int count) { device_count = count; }
int current_device() { return taken_device; }
void set_device_memory(std::size_t bytes, std::size_t unseen) {
  device_memory = bytes;
  unseen_memory = unseen;
}
void set_most_pinned(std::size_t bytes) { most_pinned = bytes; }
void set_memory_pools(bool has_pools) { pools = has_pools; }
void keep_device_busy(bool is_busy) { busy = is_busy; }
void lose_device(bool is_lost) { lost = is_lost; }
void set_early_copies(bool early) { early_copies = early; }
Counts counts() {
  counted.heuristics = heuristics_asked();
  return counted;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream->capture) {
    stream->capture->work.push_back(std::move(work));
  } else {
    stream->computes = true;
    give(stream, std::move(work));
  }
}

void count_fragments() { ++counted.fragments; }

cudaError_t set_kernel_memory(const void* kernel, int bytes) {
  constexpr int kMost = 163 << 10;  // of compute capability 8.0
  if (bytes < 0 || bytes > kMost) return cudaErrorInvalidValue;
  memory_of_kernel[kernel] = static_cast<std::size_t>(bytes);
  return cudaSuccess;
}

cudaError_t valid_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  ++counted.launches;
  if (lost) return sound();
  const dim3 grid = config.gridDim, threads = config.blockDim;
  const bool valid = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
                     grid.z <= 65535 && threads.x >= 1 && threads.y >= 1 && threads.z >= 1 && threads.z <= 64 &&
                     threads.x * threads.y * threads.z <= 1024 &&
                     config.dynamicSmemBytes <= std::max(std::size_t{48} << 10, memory_of_kernel[kernel]);
  return valid ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace emulation

using namespace emulation;

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorDevicesUnavailable:
      return "cudaErrorDevicesUnavailable";
    default:
      return "an emulated error";
  }
}
const char* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  static const bool read = [] {
    const char* text = std::getenv("FEDPDPO_EMULATED_MEMORY");
    std::size_t kib = 0, unseen = 0;
    if (text != nullptr && std::sscanf(text, "%zu+%zu", &kib, &unseen) > 0) set_device_memory(kib << 10, unseen << 10);
    return true;
  }();
  (void)read;
  *count = device_count;
  return device_count > 0 ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index < 0 || index >= device_count) return cudaErrorInvalidDevice;
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated device %d", index);
  properties->totalGlobalMem = device_memory;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int index) {
  if (index < 0 || index >= device_count) return cudaErrorInvalidDevice;
  std::snprintf(text, static_cast<std::size_t>(length), "0000:%02x:00.0", 0x10 + index);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int wanted) {
  if (wanted < 0 || wanted >= device_count) return cudaErrorInvalidDevice;
  if (busy) return cudaErrorDevicesUnavailable;
  taken_device = wanted;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = device_memory + unseen_memory - memory.in_use();
  *total = device_memory + unseen_memory;
  return sound();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int index) {
  if (index < 0 || index >= device_count) return cudaErrorInvalidDevice;
  *value = pools ? 1 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  if (!pools) return cudaErrorNotSupported;
  *pool = &memory;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return sound(); }
/// The pool gives what is free back to the system at once.
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<std::uint64_t*>(value) = memory.in_use();
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  if (lost) return sound();
  auto made = std::make_shared<EmulatedStream>();
  *stream = made.get();
  streams[*stream] = std::move(made);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  drain(stream);
  streams.erase(stream);
  return sound();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  drain(stream);
  return sound();
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (lost) return sound();
  expect_no_capture(stream, "a capture within a capture");
  stream->capture = std::make_unique<EmulatedGraph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture.release();
  return *graph == nullptr ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  if (lost) return sound();
  *made = new EmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  if (lost) return sound();
  expect_no_capture(stream, "a graph is launched while work is captured");
  ++counted.graph_launches;
  for (const std::function<void()>& work : graph->work) enqueue(stream, work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
/// Work runs once it has been asked for twice: as late as a caller that asks again and again can stand.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (lost) return sound();
  expect_no_capture(stream, "a query while work is captured");
  if (stream->work.empty()) return cudaSuccess;
  stream->asked = !stream->asked;
  if (stream->asked) return cudaErrorNotReady;
  drain(stream);
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (lost) return sound();
  expect_no_capture(stream, "an event while work is captured");
  *event = {streams.at(stream), stream->given};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream) {
    ++counted.waits;
    run(*event->stream, event->position);
  }
  return sound();
}
/// The event as it is recorded now, whatever becomes of it.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (lost) return sound();
  expect_no_capture(stream, "a wait for an event while work is captured");
  if (event->stream) give(stream, [recorded = *event] { run(*recorded.stream, recorded.position); });
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** host, std::size_t bytes, unsigned) {
  if (lost) return sound();
  expect_no_captures("page-locked memory while work is captured");
  if (bytes > most_pinned) return cudaErrorMemoryAllocation;
  *host = std::malloc(bytes);
  if (*host == nullptr) return cudaErrorMemoryAllocation;
  pinned[static_cast<const std::byte*>(*host)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* host) {
  expect_no_captures("page-locked memory is freed while work is captured");
  pinned.erase(static_cast<const std::byte*>(host));
  std::free(host);
  return cudaSuccess;
}
/// Of fresh memory that holds NaN. What was freed is there again at once: no work may be left that could use it.
cudaError_t cudaMalloc(void** device, std::size_t bytes) {
  if (lost) return sound();
  expect_no_captures("an allocation while work is captured");
  ++counted.allocations;
  *device = memory.allocate(bytes);
  if (*device == nullptr) return cudaErrorMemoryAllocation;
  memory.open();
  std::memset(*device, 0xff, std::min(memory.size_of(*device), std::size_t{4} << 20));
  memory.close();
  return cudaSuccess;
}
cudaError_t cudaFree(void* device) {
  expect_no_captures("memory is freed while work is captured");
  for (const auto& [stream, state] : streams)
    if (state->computes && !state->work.empty() && !lost) fail("memory is freed that work may use");
  memory.release(device);
  return sound();
}
cudaError_t cudaMallocAsync(void** device, std::size_t bytes, cudaStream_t stream) {
  if (lost) return sound();
  if (!pools) return cudaErrorNotSupported;
  expect_no_capture(stream, "an allocation while work is captured");
  ++counted.allocations;
  *device = memory.allocate(bytes);
  if (*device == nullptr) {
    // What the stream gives back before it comes here can be had.
    run(*stream, stream->given);
    *device = memory.allocate(bytes);
  }
  if (*device == nullptr) return cudaErrorMemoryAllocation;
  // Fresh memory holds NaN; of a large piece the beginning, so that cuBLASLt's workspace stays untouched.
  enqueue(stream, [place = *device, size = std::min(memory.size_of(*device), std::size_t{4} << 20)] {
    std::memset(place, 0xff, size);
  });
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* device, cudaStream_t stream) {
  expect_no_capture(stream, "memory is freed while work is captured");
  enqueue(stream, [device] { memory.release(device); });
  return sound();
}
cudaError_t cudaMemsetAsync(void* device, int value, std::size_t bytes, cudaStream_t stream) {
  if (lost) return sound();
  enqueue(stream, [=] { std::memset(device, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  expect_no_capture(stream, "a copy while work is captured");
  give(stream, [=] { std::memcpy(to, from, bytes); });
  if (kind == cudaMemcpyDeviceToHost && !is_pinned(to)) drain(stream);
  if (early_copies && !stream->computes) run(*stream, stream->given);
  return sound();
}
