// Stands in for CUDA's header so that the .cu files compile as C++ and run on the CPU, block after block, each thread a
// fiber: index arithmetic, barriers, write modes and the order of copies are those of the device code. Only what the
// backend uses is here. The work of a stream is kept until somebody waits for it: the host runs ahead as far as it can,
// and a stream is behind another one wherever no event orders them.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorNoDevice,
  cudaErrorInvalidDevice,
  cudaErrorInsufficientDriver,
  cudaErrorDevicesUnavailable,
  cudaErrorECCUncorrectable,
  cudaErrorNvlinkUncorrectable,
  cudaErrorHardwareStackError,
  cudaErrorSystemNotReady,
  cudaErrorUnknown,
  cudaErrorLaunchFailure,
  cudaErrorLaunchTimeout,
  cudaErrorIllegalAddress,
  cudaErrorMisalignedAddress,
  cudaErrorInvalidAddressSpace,
  cudaErrorInvalidPc,
  cudaErrorIllegalInstruction,
  cudaErrorAssert,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidConfiguration,
  cudaErrorLaunchOutOfResources,
  cudaErrorInvalidDeviceFunction,
  cudaErrorNotReady,
  cudaErrorNotSupported,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaHostAllocDefault = 0, cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1 };
enum cudaMemPoolAttr {
  cudaMemPoolAttrReleaseThreshold,
  cudaMemPoolAttrReservedMemCurrent,
  cudaMemPoolAttrUsedMemCurrent,
};
enum cudaDeviceAttr { cudaDevAttrMemoryPoolsSupported };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16BF };

struct EmulatedStream;
struct EmulatedEvent;
struct EmulatedGraph;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
using cudaStream_t = EmulatedStream*;
using cudaEvent_t = EmulatedEvent*;
using cudaMemPool_t = void*;

struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

const char* cudaGetErrorName(cudaError_t status);
const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t bytes);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocAsync(void** memory, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);

namespace emulation {

/// Keeps work for the stream; device memory can be touched only while it runs.
void enqueue(cudaStream_t stream, std::function<void()> work);
/// Every thread of every block of the grid, each block with `memory` bytes of dynamic shared memory.
void run_grid(dim3 grid, dim3 block, std::size_t memory, const std::function<void()>& thread);
cudaError_t valid_launch(const cudaLaunchConfig_t& config, const void* kernel);
cudaError_t set_kernel_memory(const void* kernel, int bytes);
void block_barrier();
/// A barrier after which every thread knows whether any brought other than 0.
int block_barrier_or(int own);
unsigned lane();
/// Waits until all threads of the warp are here, who must be about the same operation, which is then done once:
/// operation(what each lane brought, lanes).
/// It orders no memory but what it moves itself.
void with_warp(void (*operation)(void* const* lanes, unsigned count), void* own);
void warp_barrier();
/// That the running thread's part of an operation reads there.
void reads(const void* from, std::size_t bytes);
void count_fragments();
/// The running block's dynamic shared memory, of NaN when the block begins.
unsigned char* block_memory();
/// Copies into it when this thread waits for it, zeros where not `valid`.
void copy_later(void* to, const void* from, std::size_t bytes, bool valid);
void finish_copies();
/// Ends the test with `what` and the running thread.
[[noreturn]] void fail(const char* what);
/// The same where the condition does not hold.
void require(bool condition, const char* what);
/// That `bytes` from there lie in the block's dynamic shared memory, at a multiple of their number.
void require_in_block_memory(const void* from, std::size_t bytes);

}  // namespace emulation

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const cudaError_t status = emulation::valid_launch(*config, reinterpret_cast<const void*>(kernel));
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel parameters take at most 4 KB");
  if (status != cudaSuccess) return status;
  std::tuple<Params...> values(static_cast<Params>(args)...);
  emulation::enqueue(config->stream, [config = *config, kernel, values] {
    emulation::run_grid(config.gridDim, config.blockDim, config.dynamicSmemBytes, [&] { std::apply(kernel, values); });
  });
  return cudaSuccess;
}

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int value) {
  return emulation::set_kernel_memory(reinterpret_cast<const void*>(kernel), value);
}

inline void __syncthreads() { emulation::block_barrier(); }
inline int __syncthreads_or(int own) { return emulation::block_barrier_or(own); }
inline void __syncwarp() { emulation::warp_barrier(); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  struct Lane {
    T value, found;
    unsigned from;
  } own{value, value, static_cast<unsigned>(lane) % 32};
  emulation::with_warp(
      [](void* const* lanes, unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
          auto& to = *static_cast<Lane*>(lanes[i]);
          emulation::require(to.from < count, "a lane beyond the block");
          to.found = static_cast<const Lane*>(lanes[to.from])->value;
        }
      },
      &own);
  return own.found;
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int mask) {
  return __shfl_sync(all, value, static_cast<int>(emulation::lane()) ^ mask);
}

/// No thread of the emulation comes between a load and a store.
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  const std::atomic_ref place(*at);
  const unsigned long long old = place.load(std::memory_order_relaxed);
  if (value < old) place.store(value, std::memory_order_relaxed);
  return old;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const std::atomic_ref place(*at);
  const unsigned old = place.load(std::memory_order_relaxed);
  if (value > old) place.store(value, std::memory_order_relaxed);
  return old;
}
inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
/// Through memory, so that the compiler cannot contract the product into what follows.
inline double __dmul_rn(double a, double b) {
  volatile double product = a * b;
  return product;
}
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
inline long long __double2ll_rz(double value) { return static_cast<long long>(value); }
/// x87's long double holds every 64-bit integer.
inline double __ll2double_rz(long long integer) {
  const auto nearest = static_cast<double>(integer);
  const bool away = std::fabs(static_cast<long double>(nearest)) > std::fabs(static_cast<long double>(integer));
  return away ? std::nextafter(nearest, 0.0) : nearest;
}
