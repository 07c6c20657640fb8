// What kernels on the matrix units share: a lane's place in a fragment, bf16 numbers by 16 bytes, and fp32 numbers as
// sums of two bf16 ones.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/mma.cuh"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {

/// Eight elements.
struct alignas(16) Piece {
  std::uint32_t pairs[4];
};
inline __device__ float low_half(std::uint32_t pair) { return __uint_as_float(pair << 16); }
inline __device__ float high_half(std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Where a lane's numbers lie in a (16, 8) result: rows `row` and `row` + 8, columns `column` and `column` + 1.
struct Lane {
  int index, row, column;
  __device__ Lane() : index(static_cast<int>(threadIdx.x) % kWarp), row(index / 4), column(index % 4 * 2) {}
};

/// Two fp32 numbers as bf16(x) and bf16 of what that leaves: 16 significant bits, wrong by 2^-18 of x at most. Beyond
/// bf16's range, and for infinity, the sum is NaN.
struct SplitPair {
  std::uint32_t high, low;
};
inline __device__ SplitPair split(float first, float second) {
  const std::uint32_t high = pack_bf16(first, second);
  return {high, pack_bf16(first - low_half(high), second - high_half(high))};
}

}  // namespace fedpdpo::cuda
