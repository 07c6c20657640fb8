// Prefix-shared causal attention by blocks of query rows, after FlashAttention (Dao et al. 2022): S = scale Q K^T of a
// block against its segment's context rows and its own rows so far, P = softmax(S), O = P V; only the log-sum-exp of
// each row is kept. Backward recomputes P = exp(S - lse); with D = rowsum(dO * O):
//   dV = P^T dO,  dS = scale P * (dO V^T - D),  dQ = dS K,  dK = dS^T Q.
// A task is one (group, kv head): it owns its rows and columns of every output, and all its sums have a fixed order.
#include "cpu/attention.hpp"

#include <algorithm>
#include <cmath>

#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
#include "cpu/tile_gemm-inl.hpp"
// clang-format on

#ifndef FEDPDPO_CPU_ATTENTION_COMMON
#define FEDPDPO_CPU_ATTENTION_COMMON
namespace fedpdpo::cpu {

inline constexpr std::int64_t kQueryRows = 32;  ///< rows of a block
inline constexpr std::int64_t kPad = 16;        ///< rows in scratch are multiples of the widest vector

inline std::int64_t padded(std::int64_t n) { return (n + kPad - 1) / kPad * kPad; }

/// Rows that the segments of a group touch; `keys` is the most that one row attends to.
struct GroupSpan {
  std::int64_t begin = 0, end = 0, keys = 0;
  std::int64_t rows() const { return end - begin; }
};

inline GroupSpan span_of(const AttentionPlan& plan, std::int64_t group) {
  GroupSpan span{INT64_MAX, 0, 0};
  for (std::int32_t s = plan.group_offsets[group]; s < plan.group_offsets[group + 1]; ++s) {
    const Segment& segment = plan.segments[s];
    const std::int64_t context = segment.context_end - segment.context_begin;
    span.begin = std::min<std::int64_t>(span.begin, segment.begin);
    span.end = std::max<std::int64_t>(span.end, segment.end);
    if (context > 0) {
      span.begin = std::min<std::int64_t>(span.begin, segment.context_begin);
      span.end = std::max<std::int64_t>(span.end, segment.context_end);
    }
    span.keys = std::max<std::int64_t>(span.keys, context + segment.end - segment.begin);
  }
  if (span.begin > span.end) span.begin = span.end;
  return span;
}

}  // namespace fedpdpo::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

// x (rows, cols) at full vectors' stride, the padding zero.
HWY_INLINE void pack_rows(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t cols, float* y) {
  const std::int64_t y_stride = padded(cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    for_columns(cols, [&](auto io, std::int64_t c)
                          HWY_ATTR { hn::StoreU(io.load(x + r * x_stride + c), Floats(), y + r * y_stride + c); });
  }
}

// y (cols, padded(rows)) = x^T. Rows of y are read up to a vector beyond any key, into the next row or the padding.
HWY_INLINE void pack_transposed(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t cols, float* y) {
  const std::int64_t y_stride = padded(rows);
  for (std::int64_t r0 = 0; r0 < y_stride; r0 += kPad) {
    const std::int64_t r1 = HWY_MIN(r0 + kPad, rows);
    for (std::int64_t c = 0; c < cols; ++c) {
      float* to = y + c * y_stride;
      for (std::int64_t r = r0; r < r1; ++r) to[r] = x[r * x_stride + c];
      for (std::int64_t r = r1; r < r0 + kPad; ++r) to[r] = 0;
    }
  }
  std::fill_n(y + cols * y_stride, kPad, 0.0f);
}

HWY_INLINE float row_max(const float* x, std::int64_t count) {
  Vec best = splat(x[0]);
  for_columns(count, [&](auto io, std::int64_t c) HWY_ATTR { best = hn::Max(best, io.keep_or(io.load(x + c), best)); });
  return hn::GetLane(hn::MaxOfLanes(Floats(), best));
}

// x[c] = exp(x[c] - shift) for c < valid, 0 up to count; the sum.
HWY_INLINE float exponentials(float* x, std::int64_t valid, std::int64_t count, float shift) {
  const Vec offset = splat(shift);
  const float sum = sum_columns(valid, [&](auto io, std::int64_t c) HWY_ATTR {
    const Vec e = hn::Exp(Floats(), hn::Sub(io.load(x + c), offset));
    io.store(e, x + c);
    return e;
  });
  for (std::int64_t c = valid; c < count; ++c) x[c] = 0;
  return sum;
}

// A block of query rows of one segment: where its keys lie in the packed span and in the score rows.
struct Block {
  std::int64_t first, rows;         // query rows [first, first + rows) of the batch
  std::int64_t context, own;        // keys: context rows, then the segment's rows up to the block's last
  std::int64_t context_at, own_at;  // their place in the span
  std::int64_t before;              // the segment's rows before the block

  std::int64_t keys() const { return context + own; }
  std::int64_t valid(std::int64_t i) const { return context + before + i + 1; }
};

template <class Visit>
HWY_INLINE void for_blocks(const AttentionPlan& plan, std::int64_t group, const GroupSpan& span, Visit visit) {
  for (std::int32_t s = plan.group_offsets[group]; s < plan.group_offsets[group + 1]; ++s) {
    const Segment& segment = plan.segments[s];
    for (std::int64_t first = segment.begin; first < segment.end; first += kQueryRows) {
      const std::int64_t rows = HWY_MIN(kQueryRows, segment.end - first);
      const std::int64_t context = segment.context_end - segment.context_begin;
      visit(Block{first, rows, context, first + rows - segment.begin,
                  context > 0 ? segment.context_begin - span.begin : 0, segment.begin - span.begin,
                  first - segment.begin});
    }
  }
}

// S (rows, keys) (stride s_stride) = alpha x (rows, hd) [y_context | y_own], y (hd, span) transposed and padded.
HWY_INLINE void block_scores(const Block& block, std::int64_t head_dim, float alpha, const float* x,
                             std::int64_t x_stride, const float* y, std::int64_t y_stride, float* s,
                             std::int64_t s_stride) {
  const StridedMatrix rows{x, x_stride, 1};
  if (block.context > 0) {
    tile_product<BPadding::full_vectors>(block.rows, block.context, head_dim, alpha, rows, y + block.context_at,
                                         y_stride, false, s, s_stride);
  }
  tile_product<BPadding::full_vectors>(block.rows, block.own, head_dim, alpha, rows, y + block.own_at, y_stride, false,
                                       s + block.context, s_stride);
}

// z (rows, hd) = S [y_context ; y_own], y (span, hd) padded.
HWY_INLINE void block_mix(const Block& block, std::int64_t head_dim, const float* s, std::int64_t s_stride,
                          const float* y, std::int64_t y_stride, float* z, std::int64_t z_stride) {
  if (block.context > 0) {
    tile_product<BPadding::full_vectors>(block.rows, head_dim, block.context, 1, {s, s_stride, 1},
                                         y + block.context_at * y_stride, y_stride, false, z, z_stride);
  }
  tile_product<BPadding::full_vectors>(block.rows, head_dim, block.own, 1, {s + block.context, s_stride, 1},
                                       y + block.own_at * y_stride, y_stride, block.context > 0, z, z_stride);
}

// [z_context ; z_own] += S^T x, z (span, hd) padded, x (rows, hd).
HWY_INLINE void block_scatter(const Block& block, std::int64_t head_dim, const float* s, std::int64_t s_stride,
                              const float* x, std::int64_t x_stride, float* z, std::int64_t z_stride) {
  if (block.context > 0) {
    tile_product<BPadding::exact>(block.context, head_dim, block.rows, 1, {s, 1, s_stride}, x, x_stride, true,
                                  z + block.context_at * z_stride, z_stride);
  }
  tile_product<BPadding::exact>(block.own, head_dim, block.rows, 1, {s + block.context, 1, s_stride}, x, x_stride, true,
                                z + block.own_at * z_stride, z_stride);
}

void Attention(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group, std::int64_t kv_head,
               ConstView qkv, View out, View lse, float* scratch) {
  const GroupSpan span = span_of(plan, group);
  const std::int64_t hd = shape.head_dim, shared = shape.num_heads / shape.num_kv_heads;
  const std::int64_t key_stride = padded(span.rows()), value_stride = padded(hd), s_stride = padded(span.keys);
  float* keys = scratch;  // (hd, span)
  float* values = keys + hd * key_stride + kPad;
  float* scores = values + span.rows() * value_stride;
  const float* k = qkv.f32() + span.begin * qkv.stride + (shape.num_heads + kv_head) * hd;
  pack_transposed(k, qkv.stride, span.rows(), hd, keys);
  pack_rows(k + shape.num_kv_heads * hd, qkv.stride, span.rows(), hd, values);

  for_blocks(plan, group, span, [&](const Block& block) HWY_ATTR {
    for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
      const float* q = qkv.f32() + block.first * qkv.stride + h * hd;
      float* o = out.f32() + block.first * out.stride + h * hd;
      block_scores(block, hd, shape.scale, q, qkv.stride, keys, key_stride, scores, s_stride);
      float inverse[kQueryRows];
      for (std::int64_t i = 0; i < block.rows; ++i) {
        float* row = scores + i * s_stride;
        const float maximum = row_max(row, block.valid(i));
        const float sum = exponentials(row, block.valid(i), block.keys(), maximum);
        inverse[i] = 1.0f / sum;
        lse.f32()[(block.first + i) * lse.stride + h] = maximum + std::log(sum);
      }
      block_mix(block, hd, scores, s_stride, values, value_stride, o, out.stride);
      for (std::int64_t i = 0; i < block.rows; ++i) {
        float* row = o + i * out.stride;
        const Vec scale = splat(inverse[i]);
        for_columns(hd, [&](auto io, std::int64_t c) HWY_ATTR { io.store(hn::Mul(scale, io.load(row + c)), row + c); });
      }
    }
  });
}

void AttentionBackward(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group, std::int64_t kv_head,
                       ConstView qkv, ConstView out, ConstView lse, ConstView d_out, View d_qkv, float* scratch) {
  const GroupSpan span = span_of(plan, group);
  const std::int64_t hd = shape.head_dim, shared = shape.num_heads / shape.num_kv_heads, rows = span.rows();
  const std::int64_t wide = padded(rows), narrow = padded(hd), s_stride = padded(span.keys);
  float* keys_t = scratch;  // (hd, span)
  float* values_t = keys_t + hd * wide + kPad;
  float* keys = values_t + hd * wide + kPad;  // (span, hd)
  float* d_keys = keys + rows * narrow;
  float* d_values = d_keys + rows * narrow;
  float* p = d_values + rows * narrow;  // (block, keys)
  float* d_s = p + kQueryRows * s_stride;
  const std::int64_t key_at = (shape.num_heads + kv_head) * hd, value_at = key_at + shape.num_kv_heads * hd;
  const float* k = qkv.f32() + span.begin * qkv.stride + key_at;
  pack_transposed(k, qkv.stride, rows, hd, keys_t);
  pack_transposed(qkv.f32() + span.begin * qkv.stride + value_at, qkv.stride, rows, hd, values_t);
  pack_rows(k, qkv.stride, rows, hd, keys);
  std::fill_n(d_keys, 2 * rows * narrow, 0.0f);

  for_blocks(plan, group, span, [&](const Block& block) HWY_ATTR {
    for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
      const float* q = qkv.f32() + block.first * qkv.stride + h * hd;
      const float* o = out.f32() + block.first * out.stride + h * hd;
      const float* d_o = d_out.f32() + block.first * d_out.stride + h * hd;
      block_scores(block, hd, shape.scale, q, qkv.stride, keys_t, wide, p, s_stride);
      block_scores(block, hd, 1, d_o, d_out.stride, values_t, wide, d_s, s_stride);
      for (std::int64_t i = 0; i < block.rows; ++i) {
        float* p_row = p + i * s_stride;
        float* d_row = d_s + i * s_stride;
        const float* o_row = o + i * out.stride;
        const float* d_o_row = d_o + i * d_out.stride;
        const float dot = sum_columns(
            hd, [&](auto io, std::int64_t c) HWY_ATTR { return hn::Mul(io.load(o_row + c), io.load(d_o_row + c)); });
        const Vec offset = splat(lse.f32()[(block.first + i) * lse.stride + h]);
        const Vec mean = splat(dot), scale = splat(shape.scale);
        const std::int64_t valid = block.valid(i);
        for_columns(valid, [&](auto io, std::int64_t c) HWY_ATTR {
          const Vec probability = hn::Exp(Floats(), hn::Sub(io.load(p_row + c), offset));
          io.store(probability, p_row + c);
          io.store(hn::Mul(hn::Mul(scale, probability), hn::Sub(io.load(d_row + c), mean)), d_row + c);
        });
        for (std::int64_t c = valid; c < block.keys(); ++c) p_row[c] = d_row[c] = 0;
      }
      block_mix(block, hd, d_s, s_stride, keys, narrow, d_qkv.f32() + block.first * d_qkv.stride + h * hd,
                d_qkv.stride);
      block_scatter(block, hd, d_s, s_stride, q, qkv.stride, d_keys, narrow);
      block_scatter(block, hd, p, s_stride, d_o, d_out.stride, d_values, narrow);
    }
  });

  for (std::int64_t r = 0; r < rows; ++r) {
    float* row = d_qkv.f32() + (span.begin + r) * d_qkv.stride;
    std::copy_n(d_keys + r * narrow, hd, row + key_at);
    std::copy_n(d_values + r * narrow, hd, row + value_at);
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(Attention);
HWY_EXPORT(AttentionBackward);

std::size_t attention_scratch(const AttentionPlan& plan, const AttentionShape& shape) {
  std::int64_t most = 0;
  const std::int64_t hd = shape.head_dim;
  for (std::size_t group = 0; group + 1 < plan.group_offsets.size(); ++group) {
    const GroupSpan span = span_of(plan, static_cast<std::int64_t>(group));
    most = std::max(most, 2 * (hd * padded(span.rows()) + kPad) + 3 * span.rows() * padded(hd) +
                              2 * kQueryRows * padded(span.keys) + kPad);
  }
  return static_cast<std::size_t>(most);
}

void attention_task(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group, std::int64_t kv_head,
                    ConstView qkv, View out, View lse, float* scratch) {
  HWY_DYNAMIC_DISPATCH(Attention)(plan, shape, group, kv_head, qkv, out, lse, scratch);
}

void attention_backward_task(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group,
                             std::int64_t kv_head, ConstView qkv, ConstView out, ConstView lse, ConstView d_out,
                             View d_qkv, float* scratch) {
  HWY_DYNAMIC_DISPATCH(AttentionBackward)(plan, shape, group, kv_head, qkv, out, lse, d_out, d_qkv, scratch);
}

}  // namespace fedpdpo::cpu
#endif
