// wide += thin factor: a short sum, and memory traffic of `wide`. A warp keeps 32 columns of the factor in fragments
// for 128 rows, which it takes 32 at a time. In a result a lane has two columns of each of four blocks of eight: dealt
// so that these are eight neighbours, 16 bytes of a row.
#include <algorithm>

#include "cuda/low_rank.cuh"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kWarps = 4, kWarpColumns = 32, kBlockColumns = kWarps * kWarpColumns;
constexpr int kBlockRows = 128, kM = 2, kRows = 16 * kM;

/// 16 kK of the depth by 32 columns: column 4 g + j of them is column g of the block j.
template <int kK, FactorLayout kLayout>
struct FactorFragments {
  SplitPair pairs[kK][4][2];

  __device__ void load(const LowRankPart& part, const float* factor, int depth, int first_column, Lane lane) {
    const int column = first_column + 4 * lane.row;
    const bool inside = column < part.width;
#pragma unroll
    for (int step = 0; step < kK; ++step) {
      const int k = depth + 16 * step + 2 * lane.column;  // of this lane's four
      float values[4][4];                                 // [block][k]
      if constexpr (kLayout == FactorLayout::wide_by_thin) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Quad quad =
              load_quad(row_at(factor, part.rank, column + j) + k, inside ? part.rank - k : 0, part.factor_in_quads);
          for (int i = 0; i < 4; ++i) values[j][i] = quad.v[i];
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Quad quad = load_quad(row_at(factor, part.width, k + i) + column, inside && k + i < part.rank ? 4 : 0,
                                      part.factor_in_quads);
          for (int j = 0; j < 4; ++j) values[j][i] = quad.v[j];
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        for (int pair = 0; pair < 2; ++pair) pairs[step][j][pair] = split(values[j][2 * pair], values[j][2 * pair + 1]);
    }
  }
};

/// Rows row and row + 8 of `thin` at the lane's four of 16 columns, as a left operand.
struct ThinFragment {
  std::uint32_t high[4], low[4];

  __device__ ThinFragment(const LowRankPart& part, int stride, int row, int end, int k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = row + 8 * half;
      const Quad quad = load_quad(row_at(part.thin, stride, t) + k, t < end ? part.rank - k : 0, part.thin_in_quads);
      for (int pair = 0; pair < 2; ++pair) {
        const SplitPair both = split(quad.v[2 * pair], quad.v[2 * pair + 1]);
        high[2 * pair + half] = both.high;
        low[2 * pair + half] = both.low;
      }
    }
  }
};

/// alpha sum (+ before) of eight neighbours of row half `half`: number 4 i + j is block j's column i.
inline __device__ Piece result(const float (&sums)[4][4], int half, float alpha, const Piece& before) {
  Piece piece;
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    const int i = pair / 2, j = pair % 2 * 2;
    piece.pairs[pair] = pack_bf16(fmaf(alpha, sums[j][2 * half + i], low_half(before.pairs[pair])),
                                  fmaf(alpha, sums[j + 1][2 * half + i], high_half(before.pairs[pair])));
  }
  return piece;
}

template <int kK, FactorLayout kLayout>
__global__ void __launch_bounds__(kWarps* kWarp) up_kernel(MemberTable table, LowRankProducts products) {
  const MemberRows member = table.members[blockIdx.z];
  const int begin = member.begin + static_cast<int>(blockIdx.y) * kBlockRows;
  const int end = member.end - begin < kBlockRows ? member.end : begin + kBlockRows;
  int block = static_cast<int>(blockIdx.x), index = 0;
  while (block * kBlockColumns >= products.parts[index].width)
    block -= (products.parts[index++].width + kBlockColumns - 1) / kBlockColumns;
  const LowRankPart part = products.parts[index];
  const int first_column = block * kBlockColumns + static_cast<int>(threadIdx.x) / kWarp * kWarpColumns;
  if (begin >= end || first_column >= part.width) return;  // whole warps
  const float* const factor = part.factor + member.slot * part.slot_stride;
  const Lane lane;
  const int column = first_column + 4 * lane.column;  // of this lane's eight
  const bool inside = column<part.width, several = part.rank> 16 * kK;

  FactorFragments<kK, kLayout> b;
  if (!several) b.load(part, factor, 0, first_column, lane);
  for (int row = begin + lane.row; row - lane.row < end; row += kRows) {
    Piece before[kM][2] = {};
    if (products.mode == Write::accumulate && inside) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
        for (int half = 0; half < 2; ++half) {
          const int t = row + 16 * m + 8 * half;
          if (t < end) before[m][half] = load_as<Piece>(row_at(part.wide, products.wide_stride, t) + column);
        }
    }
    float sums[kM][4][4] = {};
    for (int depth = 0; depth < part.rank; depth += 16 * kK) {
      if (several) b.load(part, factor, depth, first_column, lane);
#pragma unroll
      for (int step = 0; step < kK; ++step) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const ThinFragment a(part, products.thin_stride, row + 16 * m, end, depth + 16 * step + 2 * lane.column);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const SplitPair(&pairs)[2] = b.pairs[step][j];
            mma_m16n8k16_bf16(sums[m][j], a.low, pairs[0].high, pairs[1].high);
            mma_m16n8k16_bf16(sums[m][j], a.high, pairs[0].low, pairs[1].low);
            mma_m16n8k16_bf16(sums[m][j], a.high, pairs[0].high, pairs[1].high);
          }
        }
      }
    }
    if (!inside) continue;
#pragma unroll
    for (int m = 0; m < kM; ++m)
      for (int half = 0; half < 2; ++half) {
        const int t = row + 16 * m + 8 * half;
        if (t < end)
          store_as(row_at(part.wide, products.wide_stride, t) + column,
                   result(sums[m], half, products.alpha, before[m][half]));
      }
  }
}

template <int kK>
void launch_up(cudaStream_t stream, const char* operation, dim3 grid, const MemberTable& table,
               const LowRankProducts& products) {
  auto* const kernel = products.layout == FactorLayout::wide_by_thin ? up_kernel<kK, FactorLayout::wide_by_thin>
                                                                     : up_kernel<kK, FactorLayout::thin_by_wide>;
  launch(stream, operation, grid, dim3(kWarps * kWarp), kernel, table, products);
}

}  // namespace

void low_rank_up(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                 const LowRankProducts& products) {
  int rank = 0;
  unsigned blocks = 0;
  for (int i = 0; i < products.count; ++i) {
    rank = std::max(rank, products.parts[i].rank);
    blocks += grid_size(products.parts[i].width, kBlockColumns, INT32_MAX);
  }
  for_tables(members, [&](const MemberTable& table, std::int64_t rows) {
    if (rows == 0) return;
    check(rows <= kBlockRows * kMaxGridY, "low_rank_up: too many rows for one launch");
    const dim3 grid(blocks, grid_size(rows, kBlockRows, kMaxGridY), static_cast<unsigned>(table.count));
    if (rank <= 16) return launch_up<1>(stream, operation, grid, table, products);
    if (rank <= 32) return launch_up<2>(stream, operation, grid, table, products);
    if (rank <= 48) return launch_up<3>(stream, operation, grid, table, products);
    if (rank <= 64) return launch_up<4>(stream, operation, grid, table, products);
    if (rank <= 96 || rank > 128) return launch_up<6>(stream, operation, grid, table, products);
    launch_up<8>(stream, operation, grid, table, products);
  });
}

}  // namespace fedpdpo::cuda
