// Attention backward of bf16 rows on the matrix units: a kernel by query tiles for dQ and D = rowsum(dO * O), and one
// by key tiles for dK and dV, which visits all queries of all heads that read them in a fixed order; so no sum depends
// on timing. With P = exp(S - lse): dS = P (dO V^T - D), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO; P and dS are
// rounded to bf16 for these products, all sums are fp32.
#include "cuda/attention.hpp"
#include "cuda/attention_tiles.cuh"

namespace fedpdpo::cuda {
namespace {

/// Wide heads leave no registers for the rows that stay: they are read from shared memory again and again.
template <int kD>
inline constexpr bool kKeepQueries = kD <= 32;
template <int kD>
inline constexpr bool kKeepKeys = kD <= 64;
/// Tiles of keys in flight in the query kernel: the next ones come while these are used, where a block's memory allows
/// for it without costing the multiprocessor a block.
template <int kD>
inline constexpr int kKeyStages = kD <= 64 ? 2 : 1;
/// Query rows that the key kernel takes at a time, two such tiles in flight.
template <int kD>
inline constexpr int kQueryRows = kD <= 64 ? 64 : 32;

/// Rows of queries and their gradients with what the softmax left, as the key kernel reads them.
template <int kD>
struct alignas(16) QueryStage {
  std::uint16_t q[kQueryRows<kD> * kTileStride<kD>];
  std::uint16_t d_out[kQueryRows<kD> * kTileStride<kD>];
  float lse[kQueryRows<kD>], delta[kQueryRows<kD>];
};

/// D of the row lane.index / 2 of the warp's 16: `d_out` is its row in shared memory, `out` the one in memory.
template <int kD>
__device__ float row_product(const std::uint16_t* d_out, const std::uint16_t* out, bool valid, int head_dim,
                             bool aligned, Lane lane) {
  float sum = 0;
  for (int column = lane.index % 2 * 8; valid && column < head_dim; column += 16) {
    Piece piece;
    if (aligned) {
      piece = load_as<Piece>(out + column);
    } else {
      const auto element = [&](int i) {
        return column + i < head_dim ? static_cast<std::uint32_t>(out[column + i]) : 0u;
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) piece.pairs[i] = element(2 * i) | element(2 * i + 1) << 16;
    }
    const auto gradient = load_as<Piece>(d_out + column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(low_half(gradient.pairs[i]), low_half(piece.pairs[i]), sum);
      sum = fmaf(high_half(gradient.pairs[i]), high_half(piece.pairs[i]), sum);
    }
  }
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);
}

/// Rotates the gradient of the warp's 16 rows from `first_row` on back, where there are tables: halves of a head lie kD
/// / 2 columns apart, in the same lane.
template <int kD>
__device__ void rotate_back(float (&sum)[kD / 8][4], const RotaryRows& rotary, std::int64_t first_row, int rows,
                            Lane lane) {
  if (rotary.cos.cols == 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane.row + half * 8;
    if (row >= rows) break;
    const std::int32_t position = static_cast<const std::int32_t*>(rotary.positions.data)[first_row + row];
    const float* const cos = row_of(rotary.cos, position) + lane.column;
    const float* const sin = row_of(rotary.sin, position) + lane.column;
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      for (int i = 0; i < 2; ++i) {
        float& a = sum[n][2 * half + i];
        float& b = sum[n + kD / 16][2 * half + i];
        const float c = cos[n * 8 + i], s = sin[n * 8 + i], before = a;
        a = fmaf(b, s, before * c);
        b = fmaf(-before, s, b * c);
      }
    }
  }
}

/// dQ, and D for the other kernel.
template <int kD>
__global__ void __launch_bounds__(kTileThreads)
    query_gradient_kernel(DevicePlan plan, Heads heads, bool aligned, ConstView qkv, ConstView out, ConstView lse,
                          ConstView d_out, View delta, View d_qkv, RotaryRows rotary) {
  const QueryTile tile = plan.query_tiles[blockIdx.x / heads.num_heads];
  if (tile.begin == tile.end) return;
  const int head = static_cast<int>(blockIdx.x % heads.num_heads), kv_head = head / heads.shared();
  const int head_dim = heads.head_dim, rows = tile.end - tile.begin;
  auto* const q_tile = reinterpret_cast<std::uint16_t*>(block_memory());
  std::uint16_t* const d_out_tile = q_tile + kTileElements<kD>;
  std::uint16_t* const v_tile = d_out_tile + kTileElements<kD>;
  const auto k_tile = [&](int j) { return v_tile + (1 + j % kKeyStages<kD>)*kTileElements<kD>; };

  const TileKeys keys(tile);
  const auto load_keys = [&](std::uint16_t* to, std::int64_t column, int j) {
    load_tile<kD, kTileRows>(to, head_dim, aligned, qkv.data, [&](int r) {
      const int key = j * kTileRows + r;
      return key < keys.count ? half_row(qkv, keys.row(key)) + column : nullptr;
    });
  };
  const auto load_queries = [&](std::uint16_t* to, ConstView from) {
    load_tile<kD, kTileRows>(to, head_dim, aligned, from.data, [&](int r) {
      return r < rows ? half_row(from, tile.begin + r) + heads.query(head) : nullptr;
    });
  };
  load_queries(q_tile, qkv);
  load_queries(d_out_tile, d_out);
  load_keys(k_tile(0), heads.key(kv_head), 0);
  load_keys(v_tile, heads.value(kv_head), 0);
  cp_async_wait_all();
  __syncthreads();

  const Lane lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;  // of this warp's rows in the tile
  const WarpRows<kD, kKeepQueries<kD>> q(q_tile + first * kTileStride<kD>, lane);
  const WarpRows<kD, kKeepQueries<kD>> d_o(d_out_tile + first * kTileStride<kD>, lane);
  float offset[2], mean[2];  // lse log2(e) and D of the lane's rows
  {
    const int row = first + lane.index / 2;
    const float product = row_product<kD>(d_out_tile + row * kTileStride<kD>,
                                          half_row(out, tile.begin + (row < rows ? row : 0)) + heads.query(head),
                                          row < rows, head_dim, aligned, lane);
    if (lane.index % 2 == 0 && row < rows) row_of(delta, tile.begin + row)[head] = product;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = lane.row + half * 8;
      mean[half] = __shfl_sync(0xffffffffu, product, 2 * own);
      offset[half] = first + own < rows ? kLog2E * row_of(lse, tile.begin + first + own)[head] : 0.0f;
    }
  }
  const float to_log2 = heads.scale * kLog2E;
  float d_q[kD / 8][4] = {};
  for (int j = 0; j < keys.tiles; ++j) {
    const bool more = j + 1 < keys.tiles;
    if (kKeyStages<kD> == 2 && more) load_keys(k_tile(j + 1), heads.key(kv_head), j + 1);
    const int first_key = j * kTileRows, seen = keys.before + first;
    const bool active = first < rows && first_key < seen + kWarpRows;
    float d_s[kTileRows / 8][4] = {};
    if (active) {
      float scores[kTileRows / 8][4] = {};
      multiply_by_transpose<kD, kTileRows>(scores, q, k_tile(j), lane);
      multiply_by_transpose<kD, kTileRows>(d_s, d_o, v_tile, lane);
      const bool masked = first_key + kTileRows - 1 > seen;
#pragma unroll
      for (int n = 0; n < kTileRows / 8; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int key = first_key + n * 8 + lane.column + i % 2, half = i / 2;
          float weight = exp2_approximate(fmaf(scores[n][i], to_log2, -offset[half]));
          if (masked && key > seen + lane.row + half * 8) weight = 0;
          d_s[n][i] = weight * (d_s[n][i] - mean[half]);
        }
      }
    }
    __syncthreads();  // the values have been used
    if (more) load_keys(v_tile, heads.value(kv_head), j + 1);
    if (active) multiply<kD, kTileRows>(d_q, d_s, k_tile(j), lane);
    if (!more) break;
    if (kKeyStages<kD> == 1) {
      __syncthreads();  // and the keys
      load_keys(k_tile(j + 1), heads.key(kv_head), j + 1);
    }
    cp_async_wait_all();
    __syncthreads();
  }
  if (first >= rows) return;
  const float factor[2] = {heads.scale, heads.scale};
  rotate_back<kD>(d_q, rotary, tile.begin + first, rows - first, lane);
  store_rows<kD>(q_tile + first * kTileStride<kD>, d_q, factor, lane,
                 half_row(d_qkv, tile.begin + first) + heads.query(head), d_qkv.stride, rows - first, head_dim,
                 aligned);
}

/// The key kernel's way through its queries: visit by visit, tile by tile, head by head.
struct QueryStep {
  int visit, last_visit, row, shared, head;  ///< head: of the `shared` ones
  Visit rows;

  __device__ QueryStep(const DevicePlan& plan, const KeyTile& tile, int num_shared)
      : visit(tile.first_visit), last_visit(tile.last_visit), shared(num_shared), head(0), rows(plan.visits[visit]) {
    row = rows.begin;
  }
  __device__ bool valid() const { return visit < last_visit; }
  __device__ void advance(const DevicePlan& plan, int tile_rows) {
    if (++head < shared) return;
    head = 0;
    row += tile_rows;
    if (row < rows.end || ++visit == last_visit) return;
    rows = plan.visits[visit];
    row = rows.begin;
  }
};

/// dK and dV of a key tile: a warp's rows are keys, the scores are transposed.
template <int kD>
__global__ void __launch_bounds__(kTileThreads)
    key_gradient_kernel(DevicePlan plan, Heads heads, bool aligned, ConstView qkv, ConstView lse, ConstView d_out,
                        ConstView delta, View d_qkv, RotaryRows rotary) {
  constexpr int kQueries = kQueryRows<kD>;
  static_assert(2 * kQueries <= kTileThreads);
  const KeyTile tile = plan.key_tiles[blockIdx.x / heads.num_kv_heads];
  if (tile.begin == tile.end) return;
  const int kv_head = static_cast<int>(blockIdx.x % heads.num_kv_heads), first_head = kv_head * heads.shared();
  const int head_dim = heads.head_dim, rows = tile.end - tile.begin;
  auto* const k_tile = reinterpret_cast<std::uint16_t*>(block_memory());
  std::uint16_t* const v_tile = k_tile + kTileElements<kD>;
  auto* const stages = reinterpret_cast<QueryStage<kD>*>(v_tile + kTileElements<kD>);

  const auto load_keys = [&](std::uint16_t* to, std::int64_t column) {
    load_tile<kD, kTileRows>(to, head_dim, aligned, qkv.data,
                             [&](int r) { return r < rows ? half_row(qkv, tile.begin + r) + column : nullptr; });
  };
  const auto load_queries = [&](QueryStage<kD>& stage, const QueryStep& step) {
    const int head = first_head + step.head;
    const auto load = [&](std::uint16_t* to, ConstView from) {
      load_tile<kD, kQueries>(to, head_dim, aligned, from.data, [&](int r) {
        return step.row + r < step.rows.end ? half_row(from, step.row + r) + heads.query(head) : nullptr;
      });
    };
    load(stage.q, qkv);
    load(stage.d_out, d_out);
    const int thread = static_cast<int>(threadIdx.x), r = thread % kQueries;
    if (thread < 2 * kQueries) {
      const ConstView from = thread < kQueries ? lse : delta;
      const bool valid = step.row + r < step.rows.end;
      cp_async_4((thread < kQueries ? stage.lse : stage.delta) + r,
                 row_of(from, valid ? step.row + r : step.row) + head, valid);
    }
  };
  QueryStep step(plan, tile, heads.shared());
  load_keys(k_tile, heads.key(kv_head));
  load_keys(v_tile, heads.value(kv_head));
  load_queries(stages[0], step);
  cp_async_wait_all();
  __syncthreads();

  const Lane lane;
  const int first = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;  // of this warp's keys in the tile
  const int first_key = tile.begin + first, last_key = first_key + kWarpRows - 1;
  const WarpRows<kD, kKeepKeys<kD>> k(k_tile + first * kTileStride<kD>, lane);
  const WarpRows<kD, kKeepKeys<kD>> v(v_tile + first * kTileStride<kD>, lane);
  const float to_log2 = heads.scale * kLog2E;
  float d_k[kD / 8][4] = {}, d_v[kD / 8][4] = {};
  for (int i = 0; step.valid(); ++i) {
    const QueryStage<kD>& stage = stages[i % 2];
    QueryStep next = step;
    next.advance(plan, kQueries);
    if (next.valid()) load_queries(stages[(i + 1) % 2], next);
    const Visit visit = step.rows;
    const bool seen = first_key < step.row + kQueries && first_key < visit.key_end && last_key >= visit.key_begin;
    if (first < rows && seen) {
      const bool masked = last_key > step.row || last_key >= visit.key_end || first_key < visit.key_begin;
      float weights[kQueries / 8][4] = {}, d_s[kQueries / 8][4] = {};
      multiply_by_transpose<kD, kQueries>(weights, k, stage.q, lane);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
        for (int e = 0; e < 4; ++e) {
          const int column = n * 8 + lane.column + e % 2, key = first_key + lane.row + e / 2 * 8;
          weights[n][e] = exp2_approximate(fmaf(weights[n][e], to_log2, -kLog2E * stage.lse[column]));
          if (masked && (key > step.row + column || key < visit.key_begin || key >= visit.key_end)) weights[n][e] = 0;
        }
      }
      multiply<kD, kQueries>(d_v, weights, stage.d_out, lane);
      multiply_by_transpose<kD, kQueries>(d_s, v, stage.d_out, lane);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n)
        for (int e = 0; e < 4; ++e) d_s[n][e] = weights[n][e] * (d_s[n][e] - stage.delta[n * 8 + lane.column + e % 2]);
      multiply<kD, kQueries>(d_k, d_s, stage.q, lane);
    }
    step = next;
    if (!step.valid()) break;
    cp_async_wait_all();
    __syncthreads();
  }
  if (first >= rows) return;
  const auto store = [&](std::uint16_t* stage, const float(&sum)[kD / 8][4], float by, std::int64_t column) {
    const float factor[2] = {by, by};
    store_rows<kD>(stage + first * kTileStride<kD>, sum, factor, lane, half_row(d_qkv, first_key) + column,
                   d_qkv.stride, rows - first, head_dim, aligned);
  };
  rotate_back<kD>(d_k, rotary, first_key, rows - first, lane);
  store(k_tile, d_k, heads.scale, heads.key(kv_head));
  store(v_tile, d_v, 1.0f, heads.value(kv_head));
}

}  // namespace

bool can_rotate(const AttentionShape& shape, const RotaryRows& rotary) {
  bool whole_tile = false;
  with_tile_columns(shape.head_dim, [&](auto columns) { whole_tile = columns() == shape.head_dim; });
  return whole_tile && 2 * rotary.cos.cols == shape.head_dim;
}

void attention_tensor_backward(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv,
                               ConstView out, ConstView lse, ConstView d_out, View delta, View d_qkv,
                               const RotaryRows& rotary) {
  const bool aligned = rows_are_aligned(shape.head_dim, qkv, out, d_out, d_qkv);
  with_tile_columns(shape.head_dim, [&](auto columns) {
    constexpr int kD = columns();
    constexpr std::size_t kTileBytes = kTileElements<kD> * sizeof(std::uint16_t);
    launch_with_memory(stream, "attention_backward", tile_grid(plan, shape.num_heads), dim3(kTileThreads),
                       (3 + kKeyStages<kD>)*kTileBytes, query_gradient_kernel<kD>, plan, Heads(shape), aligned, qkv,
                       out, lse, d_out, delta, d_qkv, rotary);
    launch_with_memory(stream, "attention_backward", tile_grid(plan, shape.num_kv_heads), dim3(kTileThreads),
                       2 * kTileBytes + 2 * sizeof(QueryStage<kD>), key_gradient_kernel<kD>, plan, Heads(shape),
                       aligned, qkv, lse, d_out, delta, d_qkv, rotary);
  });
}

}  // namespace fedpdpo::cuda
