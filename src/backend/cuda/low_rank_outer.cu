// factor = wide^T thin, a sum over a member's rows. A block takes 64 columns of `wide` and up to 16 kM of `thin`, its
// warps every eighth 16 rows; their sums are added in the warps' order. A lane takes four rows of eight columns of
// `wide`, whose neighbours in a column it pairs itself.
#include <algorithm>

#include "cuda/low_rank.cuh"

namespace fedpdpo::cuda {
namespace {

constexpr int kColumns = 64;

/// Four rows of eight columns as right operands: columns j of the lanes g, 8 g + j, are block j.
struct WideFragments {
  std::uint32_t pairs[8][2];

  __device__ explicit WideFragments(const Piece (&rows)[4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      for (int pair = 0; pair < 2; ++pair) {
        const std::uint32_t first = rows[2 * pair].pairs[j / 2], second = rows[2 * pair + 1].pairs[j / 2];
        pairs[j][pair] = j % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
      }
  }
};

template <int kM, FactorLayout kLayout>
__global__ void __launch_bounds__(kSumThreads) outer_kernel(MemberTable table, LowRankProducts products, int chunks) {
  const MemberRows member = table.members[blockIdx.z];
  const LowRankPart part = products.parts[blockIdx.y / chunks];
  const int first_column = static_cast<int>(blockIdx.x) * kColumns;
  const int first_thin = static_cast<int>(blockIdx.y) % chunks * 16 * kM;
  if (first_column >= part.width || first_thin >= part.rank) return;
  if (member.begin == member.end && products.mode == Write::accumulate) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Lane lane;
  const int column = first_column + 8 * lane.row;  // of this lane's eight

  const auto load_rows = [&](Piece(&to)[4], int row) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[i] = row + i < member.end && column < part.width
                  ? load_as<Piece>(row_at(part.wide, products.wide_stride, row + i) + column)
                  : Piece{};
  };
  float sums[kM][8][4] = {};
  Piece rows[4], next[4];
  const int first_row = member.begin + 16 * warp;
  load_rows(rows, first_row + 2 * lane.column);
  for (int row0 = first_row; row0 < member.end; row0 += 16 * kSumWarps) {
    const int row = row0 + 2 * lane.column;  // of this lane's four
    load_rows(next, row + 16 * kSumWarps);
    const WideFragments b(rows);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      std::uint32_t high[4], low[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int thin_column = first_thin + 16 * m + lane.row + 8 * half;
        for (int pair = 0; pair < 2; ++pair) {
          float values[2];
          for (int i = 0; i < 2; ++i) {
            const int t = row + 2 * pair + i;
            values[i] = t < member.end && thin_column < part.rank
                            ? row_at(part.thin, products.thin_stride, t)[thin_column]
                            : 0.0f;
          }
          const SplitPair both = split(values[0], values[1]);
          high[2 * pair + half] = both.high;
          low[2 * pair + half] = both.low;
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        mma_m16n8k16_bf16(sums[m][j], low, b.pairs[j][0], b.pairs[j][1]);
        mma_m16n8k16_bf16(sums[m][j], high, b.pairs[j][0], b.pairs[j][1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = next[i];
  }

  auto* const stage = reinterpret_cast<float*>(block_memory());
  float* const factor = part.factor + member.slot * part.slot_stride;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    if (m > 0) __syncthreads();  // the last columns have been read
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* const to = stage + (warp * 16 + lane.row + i / 2 * 8) * kStageStride<kColumns> + 8 * (lane.column + i % 2);
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        store_as(to + j, Quad{sums[m][j][i], sums[m][j + 1][i], sums[m][j + 2][i], sums[m][j + 3][i]});
    }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < 16 * kColumns; at += kSumThreads) {
      constexpr bool kByThin = kLayout == FactorLayout::thin_by_wide;
      const int row = kByThin ? at / kColumns : at % 16, wide_column = kByThin ? at % kColumns : at / 16;
      const int i = first_thin + 16 * m + row, j = first_column + wide_column;
      if (i >= part.rank || j >= part.width) continue;
      put_scaled(kByThin ? row_at(factor, part.width, i) + j : row_at(factor, part.rank, j) + i, products.alpha,
                 sum_of_warps<kColumns>(stage, row, wide_column), products.mode);
    }
  }
}

template <int kM>
void launch_outer(cudaStream_t stream, const char* operation, const MemberTable& table, const LowRankProducts& products,
                  int width, int rank) {
  const int chunks = (rank + 16 * kM - 1) / (16 * kM);
  const dim3 grid(grid_size(width, kColumns, INT32_MAX), static_cast<unsigned>(products.count * chunks),
                  static_cast<unsigned>(table.count));
  auto* const kernel = products.layout == FactorLayout::wide_by_thin ? outer_kernel<kM, FactorLayout::wide_by_thin>
                                                                     : outer_kernel<kM, FactorLayout::thin_by_wide>;
  launch_with_memory(stream, operation, grid, dim3(kSumThreads), kStageBytes<kColumns>, kernel, table, products,
                     chunks);
}

}  // namespace

void low_rank_outer(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                    const LowRankProducts& products) {
  int width = 0, rank = 0;
  for (int i = 0; i < products.count; ++i) {
    width = std::max(width, products.parts[i].width);
    rank = std::max(rank, products.parts[i].rank);
  }
  for_tables(members, [&](const MemberTable& table, std::int64_t) {
    if (rank <= 16) return launch_outer<1>(stream, operation, table, products, width, rank);
    if (rank <= 32) return launch_outer<2>(stream, operation, table, products, width, rank);
    if (rank <= 48) return launch_outer<3>(stream, operation, table, products, width, rank);
    launch_outer<4>(stream, operation, table, products, width, rank);
  });
}

}  // namespace fedpdpo::cuda
