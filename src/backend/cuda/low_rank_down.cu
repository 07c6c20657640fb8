// thin = wide factor: few columns, a long sum. A block takes 16 kM rows and up to 8 kN columns, its warps every eighth
// step of 32 along the depth; their sums are added in the warps' order. Neither the rows of a block nor the split of
// the sum depends on anything but the factor's shape, but for kM, which changes no sum.
#include <algorithm>

#include "cuda/low_rank.cuh"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kStep = 32;

/// factor[k .. k + 7][column], where lane t of a group has the t-th eight of a step.
template <FactorLayout kLayout>
__device__ void load_factor(float (&to)[8], const LowRankPart& part, const float* factor, int k, int column) {
  const bool inside = k < part.width && column < part.rank;
  if constexpr (kLayout == FactorLayout::thin_by_wide) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Quad quad =
          load_quad(row_at(factor, part.width, column) + k + 4 * half, inside ? 4 : 0, part.factor_in_quads);
      for (int i = 0; i < 4; ++i) to[4 * half + i] = quad.v[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = inside ? row_at(factor, part.rank, k + i)[column] : 0.0f;
  }
}

template <int kN, int kM, FactorLayout kLayout>
__global__ void __launch_bounds__(kSumThreads) down_kernel(MemberTable table, LowRankProducts products, int chunks) {
  constexpr int kColumns = 8 * kN;
  const MemberRows member = table.members[blockIdx.z];
  const LowRankPart part = products.parts[blockIdx.x / chunks];
  const int first_column = static_cast<int>(blockIdx.x) % chunks * kColumns;
  const int first_row = member.begin + static_cast<int>(blockIdx.y) * 16 * kM;
  if (first_row >= member.end || first_column >= part.rank) return;
  const float* const factor = part.factor + member.slot * part.slot_stride;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane;

  const std::uint16_t* const wide = row_at(part.wide, products.wide_stride, first_row + lane.row);
  const auto load_rows = [&](Piece(&to)[kM][2], int k) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      for (int half = 0; half < 2; ++half) {
        const int row = 16 * m + 8 * half;
        to[m][half] = k < part.width && first_row + lane.row + row < member.end
                          ? load_as<Piece>(wide + row * products.wide_stride + k)
                          : Piece{};
      }
    }
  };
  float sums[kM][kN][4] = {};
  Piece x[kM][2], next[kM][2];
  const int first_k = warp * kStep;
  load_rows(x, first_k + 4 * lane.column);
  for (int k0 = first_k; k0 < part.width; k0 += kSumWarps * kStep) {
    const int k = k0 + 4 * lane.column;  // of this lane's eight
    load_rows(next, k + kSumWarps * kStep);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      float values[8];
      load_factor<kLayout>(values, part, factor, k, first_column + 8 * n + lane.row);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const SplitPair b0 = split(values[4 * step], values[4 * step + 1]);
        const SplitPair b1 = split(values[4 * step + 2], values[4 * step + 3]);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const std::uint32_t a[4] = {x[m][0].pairs[2 * step], x[m][1].pairs[2 * step], x[m][0].pairs[2 * step + 1],
                                      x[m][1].pairs[2 * step + 1]};
          mma_m16n8k16_bf16(sums[m][n], a, b0.low, b1.low);
          mma_m16n8k16_bf16(sums[m][n], a, b0.high, b1.high);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
      for (int half = 0; half < 2; ++half) x[m][half] = next[m][half];
  }

  auto* const stage = reinterpret_cast<float*>(block_memory());
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    if (m > 0) __syncthreads();  // the last rows have been read
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int row = warp * 16 + lane.row + i / 2 * 8;
        stage[row * kStageStride<kColumns> + 8 * n + lane.column + i % 2] = sums[m][n][i];
      }
    }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < 16 * kColumns; at += kSumThreads) {
      const int row = at / kColumns, column = at % kColumns;
      const int t = first_row + 16 * m + row;
      if (t < member.end && first_column + column < part.rank)
        put_scaled(row_at(part.thin, products.thin_stride, t) + first_column + column, products.alpha,
                   sum_of_warps<kColumns>(stage, row, column), products.mode);
    }
  }
}

template <int kN, int kM>
void launch_down(cudaStream_t stream, const char* operation, const MemberTable& table, std::int64_t rows,
                 const LowRankProducts& products, int rank) {
  check(rows <= 16 * kM * kMaxGridY, "low_rank_down: too many rows for one launch");
  const int chunks = (rank + 8 * kN - 1) / (8 * kN);
  const dim3 grid(static_cast<unsigned>(products.count * chunks), grid_size(rows, 16 * kM, kMaxGridY),
                  static_cast<unsigned>(table.count));
  auto* const kernel = products.layout == FactorLayout::wide_by_thin ? down_kernel<kN, kM, FactorLayout::wide_by_thin>
                                                                     : down_kernel<kN, kM, FactorLayout::thin_by_wide>;
  launch_with_memory(stream, operation, grid, dim3(kSumThreads), kStageBytes<8 * kN>, kernel, table, products, chunks);
}

}  // namespace

void low_rank_down(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                   const LowRankProducts& products) {
  int rank = 0;
  for (int i = 0; i < products.count; ++i) rank = std::max(rank, products.parts[i].rank);
  for_tables(members, [&](const MemberTable& table, std::int64_t rows) {
    if (rows == 0) return;
    // Many rows a block read the factor less often, few rows make more blocks.
    std::int64_t tiles = 0;
    for (int i = 0; i < table.count; ++i) tiles += (table.members[i].end - table.members[i].begin + 63) / 64;
    const bool many = tiles * products.count >= 128;
    const auto with_columns = [&]<int kN>() {
      constexpr int kMost = kN <= 8 ? 4 : 2;
      many ? launch_down<kN, kMost>(stream, operation, table, rows, products, rank)
           : launch_down<kN, 1>(stream, operation, table, rows, products, rank);
    };
    if (rank <= 8) return with_columns.template operator()<1>();
    if (rank <= 16) return with_columns.template operator()<2>();
    if (rank <= 32) return with_columns.template operator()<4>();
    if (rank <= 48) return with_columns.template operator()<6>();
    if (rank <= 64 || rank > 128) return with_columns.template operator()<8>();
    with_columns.template operator()<16>();
  });
}

}  // namespace fedpdpo::cuda
