// Prefix-shared causal attention of f32 or bf16 rows, a warp a row and head, its lanes along the head's columns, online
// softmax over keys:
//   m' = max(m, s), l' = l e^(m - m') + e^(s - m'), o' = o e^(m - m') + e^(s - m') v;  lse = m + log l.
// Backward with P = exp(S - lse), D = rowsum(dO * O):  dS = scale P * (dO V^T - D),  dQ = dS K,  dV = P^T dO,
// dK = dS^T Q: one kernel by query rows, one by key rows that visits its queries in order. No sum depends on timing.
#include <algorithm>
#include <type_traits>

#include "cuda/attention.hpp"
#include "cuda/attention_heads.hpp"
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kRowWarps = 4;

__device__ float number(float x) { return x; }
__device__ float number(std::uint16_t x) { return __uint_as_float(static_cast<std::uint32_t>(x) << 16); }
__device__ void assign(float& y, float x) { y = x; }
__device__ void assign(std::uint16_t& y, float x) { y = rounded_to_bf16(x); }

template <class T>
__device__ const T* elements(ConstView x, std::int64_t t) {
  return static_cast<const T*>(x.data) + t * x.stride;
}
template <class T>
__device__ T* elements(View x, std::int64_t t) {
  return static_cast<T*>(x.data) + t * x.stride;
}

/// The columns of a head that a lane holds: lane, lane + 32, ...
template <int kParts>
struct LaneColumns {
  float values[kParts];

  /// Columns beyond the head's are zero.
  template <class T>
  static __device__ LaneColumns load(const T* head, int lane, int head_dim) {
    LaneColumns columns;
    for (int i = 0; i < kParts; ++i)
      columns.values[i] = lane + i * kWarp < head_dim ? number(head[lane + i * kWarp]) : 0.0f;
    return columns;
  }
  static __device__ LaneColumns zero() { return load<float>(nullptr, 0, 0); }
  template <class T>
  __device__ void store(T* head, int lane, int head_dim) const {
    for (int i = 0; i < kParts; ++i)
      if (lane + i * kWarp < head_dim) assign(head[lane + i * kWarp], values[i]);
  }
  __device__ void scale(float factor) {
    for (int i = 0; i < kParts; ++i) values[i] *= factor;
  }
  __device__ void add(float factor, const LaneColumns& other) {
    for (int i = 0; i < kParts; ++i) values[i] = fmaf(factor, other.values[i], values[i]);
  }
};

template <int kParts>
__device__ float warp_dot(const LaneColumns<kParts>& a, const LaneColumns<kParts>& b) {
  float sum = 0;
  for (int i = 0; i < kParts; ++i) sum = fmaf(a.values[i], b.values[i], sum);
  return warp_sum(sum);
}

/// visit(key row) for all that `row` attends to: its segment's context, then its segment up to itself.
template <class Visit>
__device__ void for_keys(const DevicePlan& plan, std::int64_t row, Visit visit) {
  const Segment segment = plan.segments[plan.segment_of_row[row]];
  for (std::int64_t key = segment.context_begin; key < segment.context_end; ++key) visit(key);
  for (std::int64_t key = segment.begin; key <= row; ++key) visit(key);
}

/// visit(query row) for all that attend to `key`, in row order within each segment of its group, segment by segment.
template <class Visit>
__device__ void for_queries(const DevicePlan& plan, std::int64_t key, Visit visit) {
  const std::int32_t own = plan.segment_of_row[key];
  const SegmentRange group = plan.groups[own];
  for (std::int32_t s = group.first; s < group.last; ++s) {
    const Segment segment = plan.segments[s];
    const bool in_context = segment.context_begin <= key && key < segment.context_end;
    if (s != own && !in_context) continue;
    for (std::int64_t row = s == own ? key : segment.begin; row < segment.end; ++row) visit(row);
  }
}

template <int kParts, class T>
__global__ void attention_kernel(DevicePlan plan, Heads heads, ConstView qkv, View out, View lse) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, head = static_cast<int>(blockIdx.y);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (row >= qkv.rows) return;
  using Columns = LaneColumns<kParts>;
  const int hd = heads.head_dim, kv_head = head / heads.shared();
  const Columns q = Columns::load(elements<T>(qkv, row) + heads.query(head), lane, hd);
  Columns sum = Columns::zero();
  float maximum = -INFINITY, total = 0;
  for_keys(plan, row, [&](std::int64_t key) {
    const T* from = elements<T>(qkv, key);
    const float score = heads.scale * warp_dot(q, Columns::load(from + heads.key(kv_head), lane, hd));
    const float larger = fmaxf(maximum, score);
    const float keep = expf(maximum - larger), weight = expf(score - larger);
    total = fmaf(total, keep, weight);
    sum.scale(keep);
    sum.add(weight, Columns::load(from + heads.value(kv_head), lane, hd));
    maximum = larger;
  });
  sum.scale(1.0f / total);
  sum.store(elements<T>(out, row) + heads.query(head), lane, hd);
  if (lane == 0) row_of(lse, row)[head] = maximum + logf(total);
}

/// dQ, and D for the other kernel.
template <int kParts, class T>
__global__ void query_gradient_kernel(DevicePlan plan, Heads heads, ConstView qkv, ConstView out, ConstView lse,
                                      ConstView d_out, View delta, View d_qkv) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, head = static_cast<int>(blockIdx.y);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (row >= qkv.rows) return;
  using Columns = LaneColumns<kParts>;
  const int hd = heads.head_dim, kv_head = head / heads.shared();
  const Columns q = Columns::load(elements<T>(qkv, row) + heads.query(head), lane, hd);
  const Columns d_o = Columns::load(elements<T>(d_out, row) + heads.query(head), lane, hd);
  const float mean = warp_dot(d_o, Columns::load(elements<T>(out, row) + heads.query(head), lane, hd));
  const float offset = row_of(lse, row)[head];
  if (lane == 0) row_of(delta, row)[head] = mean;
  Columns d_q = Columns::zero();
  for_keys(plan, row, [&](std::int64_t key) {
    const Columns k = Columns::load(elements<T>(qkv, key) + heads.key(kv_head), lane, hd);
    const Columns v = Columns::load(elements<T>(qkv, key) + heads.value(kv_head), lane, hd);
    const float probability = expf(heads.scale * warp_dot(q, k) - offset);
    d_q.add(heads.scale * probability * (warp_dot(d_o, v) - mean), k);
  });
  d_q.store(elements<T>(d_qkv, row) + heads.query(head), lane, hd);
}

/// dK and dV of a key row, from all rows and query heads that read it.
template <int kParts, class T>
__global__ void key_gradient_kernel(DevicePlan plan, Heads heads, ConstView qkv, ConstView lse, ConstView d_out,
                                    ConstView delta, View d_qkv) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, kv_head = static_cast<int>(blockIdx.y);
  const std::int64_t key = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  if (key >= qkv.rows) return;
  using Columns = LaneColumns<kParts>;
  const int hd = heads.head_dim, shared = heads.shared();
  const Columns k = Columns::load(elements<T>(qkv, key) + heads.key(kv_head), lane, hd);
  const Columns v = Columns::load(elements<T>(qkv, key) + heads.value(kv_head), lane, hd);
  Columns d_k = Columns::zero(), d_v = Columns::zero();
  for_queries(plan, key, [&](std::int64_t row) {
    for (int head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
      const Columns q = Columns::load(elements<T>(qkv, row) + heads.query(head), lane, hd);
      const Columns d_o = Columns::load(elements<T>(d_out, row) + heads.query(head), lane, hd);
      const float probability = expf(heads.scale * warp_dot(q, k) - row_of(lse, row)[head]);
      d_v.add(probability, d_o);
      d_k.add(heads.scale * probability * (warp_dot(d_o, v) - row_of(delta, row)[head]), q);
    }
  });
  d_k.store(elements<T>(d_qkv, key) + heads.key(kv_head), lane, hd);
  d_v.store(elements<T>(d_qkv, key) + heads.value(kv_head), lane, hd);
}

/// use(integral constant: columns a lane holds, an element).
template <class T, class Use>
void with_parts(int head_dim, Use use) {
  check(head_dim <= kMaxHeadDim, "attention: head_dim at most 256 on a CUDA device");
  if (head_dim <= kWarp) return use(std::integral_constant<int, 1>(), T());
  if (head_dim <= 2 * kWarp) return use(std::integral_constant<int, 2>(), T());
  if (head_dim <= 4 * kWarp) return use(std::integral_constant<int, 4>(), T());
  use(std::integral_constant<int, 8>(), T());
}
template <class Use>
void with_parts_and_type(int head_dim, DType type, Use use) {
  if (type == DType::bf16) return with_parts<std::uint16_t>(head_dim, use);
  with_parts<float>(head_dim, use);
}

dim3 grid_of(std::int64_t rows, int heads) {
  return {grid_size(rows, kRowWarps, INT32_MAX), static_cast<unsigned>(heads), 1};
}
dim3 threads() { return dim3(kRowWarps * kWarp); }

}  // namespace

void attention(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv, View out,
               View lse) {
  if (qkv.dtype == DType::bf16 && has_tensor_kernels(shape))
    return attention_tensor(stream, plan, shape, qkv, out, lse);
  with_parts_and_type(shape.head_dim, qkv.dtype, [&](auto parts, auto element) {
    launch(stream, "attention", grid_of(qkv.rows, shape.num_heads), threads(),
           attention_kernel<parts(), decltype(element)>, plan, Heads(shape), qkv, out, lse);
  });
}

void attention_backward(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv,
                        ConstView out, ConstView lse, ConstView d_out, View delta, View d_qkv,
                        const RotaryRows& rotary) {
  const bool by_tiles = qkv.dtype == DType::bf16 && has_tensor_kernels(shape);
  const bool rotates = by_tiles && can_rotate(shape, rotary);
  if (by_tiles) {
    attention_tensor_backward(stream, plan, shape, qkv, out, lse, d_out, delta, d_qkv, rotates ? rotary : RotaryRows{});
  } else {
    with_parts_and_type(shape.head_dim, qkv.dtype, [&](auto parts, auto element) {
      using T = decltype(element);
      launch(stream, "attention_backward", grid_of(qkv.rows, shape.num_heads), threads(),
             query_gradient_kernel<parts(), T>, plan, Heads(shape), qkv, out, lse, d_out, delta, d_qkv);
      launch(stream, "attention_backward", grid_of(qkv.rows, shape.num_kv_heads), threads(),
             key_gradient_kernel<parts(), T>, plan, Heads(shape), qkv, lse, d_out, delta, d_qkv);
    });
  }
  if (rotary.cos.cols > 0 && !rotates)
    rotate(stream, rotary.positions, rotary.cos, rotary.sin, shape.head_dim, Rotation::inverse,
           d_qkv.columns(0, query_key_width(shape)));
}

}  // namespace fedpdpo::cuda
