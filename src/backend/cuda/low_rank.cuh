// What the kernels of low_rank.hpp share. None stages its operands: a product's sum may be taken in any order of the
// depth, and its columns dealt to fragments in any way, so that every lane reads and writes whole 16 bytes of a row.
#pragma once

#include "cuda/fragments.cuh"
#include "cuda/launch.hpp"
#include "cuda/low_rank.hpp"

namespace fedpdpo::cuda {

struct alignas(16) Quad {
  float v[4];
};

/// Row t of `wide` or `thin`.
template <class T>
__device__ T* row_at(T* first, std::int32_t stride, std::int32_t t) {
  return first + static_cast<std::int64_t>(t) * stride;
}

/// The first `valid` of four neighbouring numbers, zeros behind them.
inline __device__ Quad load_quad(const float* from, int valid, bool aligned) {
  if (aligned && valid >= 4) return load_as<Quad>(from);
  Quad quad{};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < valid) quad.v[i] = from[i];
  return quad;
}

inline __device__ void put_scaled(float* to, float alpha, float sum, Write mode) {
  *to = mode == Write::accumulate ? fmaf(alpha, sum, *to) : alpha * sum;
}

/// Warps that share a sum leave their parts of a (16, kColumns) result in a stage, each in its own rows.
inline constexpr int kSumWarps = 8;
inline constexpr int kSumThreads = kSumWarps * kWarp;
template <int kColumns>
inline constexpr int kStageStride = kColumns + 8;
template <int kColumns>
inline constexpr std::size_t kStageBytes = std::size_t{kSumWarps} * 16 * kStageStride<kColumns> * sizeof(float);

/// An element of the stage, of all warps in their order.
template <int kColumns>
__device__ float sum_of_warps(const float* stage, int row, int column) {
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kSumWarps; ++warp) sum += stage[(warp * 16 + row) * kStageStride<kColumns> + column];
  return sum;
}

}  // namespace fedpdpo::cuda
