// Attention forward of bf16 rows on the matrix units, after FlashAttention-2 (Dao 2023, arXiv 2307.08691): a block
// takes a tile of 64 query rows of one head and goes over its keys 64 at a time, with the online softmax of
// attention.cu in fp32 registers; weights are rounded to bf16 for the product with the values. The next keys are on
// their way while the weights are used, the values while the scores are computed.
#include "cuda/attention.hpp"
#include "cuda/attention_tiles.cuh"

namespace fedpdpo::cuda {
namespace {

/// One step of the online softmax: scores become weights, what was summed before is scaled to the new maximum.
template <int kD>
struct OnlineSoftmax {
  float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  ///< total: over this lane's columns
  float sum[kD / 8][4] = {};

  __device__ void add(float (&scores)[kTileRows / 8][4], float to_log2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float larger = maximum[half];
#pragma unroll
      for (auto& part : scores) larger = fmaxf(larger, fmaxf(part[2 * half], part[2 * half + 1]));
      larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 1));
      larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 2));
      const float keep = exp2_approximate((maximum[half] - larger) * to_log2), offset = larger * to_log2;
      maximum[half] = larger;
      total[half] *= keep;
#pragma unroll
      for (auto& part : scores) {
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          part[i] = exp2_approximate(fmaf(part[i], to_log2, -offset));
          total[half] += part[i];
        }
      }
#pragma unroll
      for (auto& part : sum) {
        part[2 * half] *= keep;
        part[2 * half + 1] *= keep;
      }
    }
  }
};

template <int kD>
__global__ void __launch_bounds__(kTileThreads)
    attention_tensor_kernel(DevicePlan plan, Heads heads, bool aligned, ConstView qkv, View out, View lse) {
  const QueryTile tile = plan.query_tiles[blockIdx.x / heads.num_heads];
  if (tile.begin == tile.end) return;
  const int head = static_cast<int>(blockIdx.x % heads.num_heads), kv_head = head / heads.shared();
  const int head_dim = heads.head_dim, rows = tile.end - tile.begin;
  auto* const q_tile = reinterpret_cast<std::uint16_t*>(block_memory());
  std::uint16_t *const k_tile = q_tile + kTileElements<kD>, *const v_tile = k_tile + kTileElements<kD>;

  const TileKeys keys(tile);
  const auto load_keys = [&](std::uint16_t* to, std::int64_t column, int j) {
    load_tile<kD, kTileRows>(to, head_dim, aligned, qkv.data, [&](int r) {
      const int key = j * kTileRows + r;
      return key < keys.count ? half_row(qkv, keys.row(key)) + column : nullptr;
    });
  };
  load_tile<kD, kTileRows>(q_tile, head_dim, aligned, qkv.data, [&](int r) {
    return r < rows ? half_row(qkv, tile.begin + r) + heads.query(head) : nullptr;
  });
  load_keys(k_tile, heads.key(kv_head), 0);
  cp_async_wait_all();
  __syncthreads();

  const Lane lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;  // of this warp's rows in the tile
  const WarpRows<kD, true> q(q_tile + first * kTileStride<kD>, lane);
  const float to_log2 = heads.scale * kLog2E;
  OnlineSoftmax<kD> softmax;
  for (int j = 0; j < keys.tiles; ++j) {
    load_keys(v_tile, heads.value(kv_head), j);
    const int first_key = j * kTileRows, seen = keys.before + first;  // the warp's first row sees keys 0 to `seen`
    const bool active = first < rows && first_key < seen + kWarpRows;
    float scores[kTileRows / 8][4] = {};
    if (active) {
      multiply_by_transpose<kD, kTileRows>(scores, q, k_tile, lane);
      if (first_key + kTileRows - 1 > seen) {
#pragma unroll
        for (int n = 0; n < kTileRows / 8; ++n) {
          for (int i = 0; i < 4; ++i) {
            const int key = first_key + n * 8 + lane.column + i % 2, row = lane.row + i / 2 * 8;
            if (key > seen + row) scores[n][i] = -INFINITY;
          }
        }
      }
      softmax.add(scores, to_log2);
    }
    cp_async_wait_all();
    __syncthreads();  // the values are here, the keys have been used
    const bool more = j + 1 < keys.tiles;
    if (more) load_keys(k_tile, heads.key(kv_head), j + 1);
    if (active) multiply<kD, kTileRows>(softmax.sum, scores, v_tile, lane);
    if (more) {
      cp_async_wait_all();
      __syncthreads();
    }
  }
  if (first >= rows) return;

  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = softmax.total[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    factor[half] = 1.0f / total;
    const int row = first + lane.row + half * 8;
    if (lane.column == 0 && row < rows)
      row_of(lse, tile.begin + row)[head] = fmaf(softmax.maximum[half], heads.scale, logf(total));
  }
  store_rows<kD>(q_tile + first * kTileStride<kD>, softmax.sum, factor, lane,
                 half_row(out, tile.begin + first) + heads.query(head), out.stride, rows - first, head_dim, aligned);
}

}  // namespace

bool has_tensor_kernels(const AttentionShape& shape) { return shape.head_dim <= 128 && shape.scale > 0; }

void attention_tensor(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                      View lse) {
  with_tile_columns(shape.head_dim, [&](auto columns) {
    constexpr std::size_t kBytes = 3 * kTileElements<columns()> * sizeof(std::uint16_t);
    launch_with_memory(stream, "attention", tile_grid(plan, shape.num_heads), dim3(kTileThreads), kBytes,
                       attention_tensor_kernel<columns()>, plan, Heads(shape),
                       rows_are_aligned(shape.head_dim, qkv, out), qkv, out, lse);
  });
}

}  // namespace fedpdpo::cuda
