// Sums and maxima over a warp and over a block, in a fixed order; every thread gets the result.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace fedpdpo::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxWarps = 32;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Butterfly: both partners combine the same two numbers, so that all lanes hold the same bits.
template <class Combine, class T>
__device__ T warp_reduce(T value, Combine combine) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

template <class T>
__device__ T warp_sum(T value) {
  return warp_reduce(value, Sum());
}

/// For blocks of whole warps, all of whose threads call it. `identity` changes nothing when combined.
template <class Combine, class T>
__device__ T block_reduce(T value, Combine combine, T identity) {
  __shared__ T partial[kMaxWarps];
  const int thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_reduce(value, combine);
  __syncthreads();  // the last call's numbers have been read
  if (thread % kWarp == 0) partial[thread / kWarp] = value;
  __syncthreads();
  return warp_reduce(thread % kWarp < warps ? partial[thread % kWarp] : identity, combine);
}

template <class T>
__device__ T block_sum(T value) {
  return block_reduce(value, Sum(), T{0});
}

inline __device__ float block_max(float value) { return block_reduce(value, Largest(), -INFINITY); }

}  // namespace fedpdpo::cuda
