// What the tensor kernels of attention are made of: tiles of bf16 rows in shared memory, products of tiles by a warp of
// 16 rows, and results from registers to rows in memory. A block is four warps, each with 16 of a tile's 64 rows.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/attention_heads.hpp"
#include "cuda/attention_plan.hpp"
#include "cuda/fragments.cuh"
#include "cuda/launch.hpp"
#include "cuda/mma.cuh"
#include "cuda/reduce.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kTileThreads = kTileRows / kWarpRows * kWarp;
inline constexpr float kLog2E = 1.44269504f;

/// Elements from row to row of a tile of kD columns, a multiple of 16: an odd number of 16-byte pieces, so that a piece
/// of eight rows in a row lies in different banks.
template <int kD>
inline constexpr int kTileStride = kD + 8;
template <int kD>
inline constexpr int kTileElements = kTileRows* kTileStride<kD>;

inline __device__ const std::uint16_t* half_row(ConstView x, std::int64_t t) {
  return static_cast<const std::uint16_t*>(x.data) + t * x.stride;
}
inline __device__ std::uint16_t* half_row(View x, std::int64_t t) {
  return static_cast<std::uint16_t*>(x.data) + t * x.stride;
}

/// Begins to copy kRows rows of a head into a tile: source(r) is row r's first column, null where the row is zeros.
/// Columns from head_dim on are zeros. By 16 bytes where `aligned`: rows begin at multiples of that, head_dim is one of
/// 8. Complete after cp_async_wait_all and a barrier.
template <int kD, int kRows, class Source>
__device__ void load_tile(std::uint16_t* tile, int head_dim, bool aligned, const void* readable, Source source) {
  if (aligned) {
    constexpr int kPieces = kD / 8;
#pragma unroll
    for (int first = 0; first < kRows * kPieces; first += kTileThreads) {
      const int i = first + static_cast<int>(threadIdx.x), row = i / kPieces, column = i % kPieces * 8;
      if (kRows * kPieces % kTileThreads != 0 && i >= kRows * kPieces) break;
      const std::uint16_t* from = source(row);
      const bool valid = from != nullptr && column < head_dim;
      cp_async_16(tile + row * kTileStride<kD> + column, valid ? from + column : readable, valid);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kD; i += kTileThreads) {
      const int row = i / kD, column = i % kD;
      const std::uint16_t* from = source(row);
      tile[row * kTileStride<kD> + column] =
          from != nullptr && column < head_dim ? from[column] : static_cast<std::uint16_t>(0);
    }
  }
}

/// The 16 rows of a warp as the left operand of products, k-step by k-step: from registers, or anew from shared memory.
template <int kD, bool kInRegisters>
class WarpRows {
 public:
  /// `rows`: the first of them, in a tile.
  __device__ WarpRows(const std::uint16_t* rows, Lane lane)
      : from_(rows + lane.index % 16 * kTileStride<kD> + lane.index / 16 * 8) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) ldmatrix_x4(kept_[k], from_ + k * 16);
    }
  }
  __device__ void get(int k, std::uint32_t (&fragment)[4]) const {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment[i] = kept_[k][i];
    } else {
      ldmatrix_x4(fragment, from_ + k * 16);
    }
  }

 private:
  const std::uint16_t* from_;
  std::uint32_t kept_[kInRegisters ? kD / 16 : 1][4];
};

/// sum (16, kN) += a b^T; a (16, kD), b a tile (kN, kD).
template <int kD, int kN, bool kInRegisters>
__device__ void multiply_by_transpose(float (&sum)[kN / 8][4], const WarpRows<kD, kInRegisters>& a,
                                      const std::uint16_t* b, Lane lane) {
  const std::uint16_t* from = b + (lane.index / 16 * 8 + lane.index % 8) * kTileStride<kD> + lane.index / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    std::uint32_t left[4];
    a.get(k, left);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      std::uint32_t right[4];
      ldmatrix_x4(right, from + n * 16 * kTileStride<kD> + k * 16);
      mma_m16n8k16_bf16(sum[2 * n], left, right[0], right[1]);
      mma_m16n8k16_bf16(sum[2 * n + 1], left, right[2], right[3]);
    }
  }
}

/// sum (16, kD) += bf16(a) b; a (16, kN) another product's result, b a tile (kN, kD). A result's columns 2t and 2t + 1
/// of two neighbouring blocks of 8 are what the left operand wants of a k-step.
template <int kD, int kN>
__device__ void multiply(float (&sum)[kD / 8][4], const float (&a)[kN / 8][4], const std::uint16_t* b, Lane lane) {
  const std::uint16_t* from = b + lane.index % 16 * kTileStride<kD> + lane.index / 16 * 8;
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    const std::uint32_t left[4] = {pack_bf16(a[2 * k][0], a[2 * k][1]), pack_bf16(a[2 * k][2], a[2 * k][3]),
                                   pack_bf16(a[2 * k + 1][0], a[2 * k + 1][1]),
                                   pack_bf16(a[2 * k + 1][2], a[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      std::uint32_t right[4];
      ldmatrix_x4_trans(right, from + k * 16 * kTileStride<kD> + n * 16);
      mma_m16n8k16_bf16(sum[2 * n], left, right[0], right[1]);
      mma_m16n8k16_bf16(sum[2 * n + 1], left, right[2], right[3]);
    }
  }
}

/// y[r] = bf16(factor[r] sum[r]) for the warp's first `rows` rows; y has `stride`. `stage` is 16 rows of a tile that no
/// other warp uses; factor[0] is of row lane.row, factor[1] of the row 8 below.
template <int kD>
__device__ void store_rows(std::uint16_t* stage, const float (&sum)[kD / 8][4], const float (&factor)[2], Lane lane,
                           std::uint16_t* y, std::int64_t stride, int rows, int head_dim, bool aligned) {
  constexpr int kStride = kTileStride<kD>;
  __syncwarp();  // the warp has read what was there
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    std::uint16_t* at = stage + lane.row * kStride + n * 8 + lane.column;
    store_as(at, pack_bf16(factor[0] * sum[n][0], factor[0] * sum[n][1]));
    store_as(at + 8 * kStride, pack_bf16(factor[1] * sum[n][2], factor[1] * sum[n][3]));
  }
  __syncwarp();
  if (aligned) {
    constexpr int kPieces = kD / 8;
#pragma unroll
    for (int i = lane.index; i < kWarpRows * kPieces; i += kWarp) {
      const int row = i / kPieces, column = i % kPieces * 8;
      if (row < rows && column < head_dim)
        store_as(y + row * stride + column, load_as<Piece>(stage + row * kStride + column));
    }
  } else {
    for (int i = lane.index; i < kWarpRows * kD; i += kWarp) {
      const int row = i / kD, column = i % kD;
      if (row < rows && column < head_dim) y[row * stride + column] = stage[row * kStride + column];
    }
  }
}

/// The keys of a query tile, numbered from 0: the context's rows, then those of the segment up to the tile's last row.
struct TileKeys {
  int context_begin, context, segment_begin;
  int before;  ///< the tile's row r attends to keys 0 to before + r
  int count, tiles;

  __device__ explicit TileKeys(const QueryTile& tile)
      : context_begin(tile.context_begin),
        context(tile.context_end - tile.context_begin),
        segment_begin(tile.segment_begin),
        before(context + tile.begin - tile.segment_begin),
        count(context + tile.end - tile.segment_begin),
        tiles((count + kTileRows - 1) / kTileRows) {}
  __device__ std::int64_t row(int key) const {
    return key < context ? context_begin + key : segment_begin + (key - context);
  }
};

/// Whether rows of heads can be copied by 16 bytes.
template <class... Views>
bool rows_are_aligned(int head_dim, const Views&... views) {
  return head_dim % 8 == 0 &&
         ((reinterpret_cast<std::uintptr_t>(views.data) % 16 == 0 && views.stride % 8 == 0) && ...);
}

/// use(integral constant: columns of a tile) for heads of at most 128 columns.
template <class Use>
void with_tile_columns(int head_dim, Use use) {
  if (head_dim <= 32) return use(std::integral_constant<int, 32>());
  if (head_dim <= 64) return use(std::integral_constant<int, 64>());
  if (head_dim <= 80) return use(std::integral_constant<int, 80>());
  if (head_dim <= 96) return use(std::integral_constant<int, 96>());
  use(std::integral_constant<int, 128>());
}

/// One block for each tile of the plan and head.
inline dim3 tile_grid(const DevicePlan& plan, int heads) {
  const std::int64_t blocks = static_cast<std::int64_t>(plan.num_tiles) * heads;
  check(blocks <= INT32_MAX, "attention: more tiles than a launch takes");
  return {static_cast<unsigned>(blocks), 1, 1};
}

}  // namespace fedpdpo::cuda
