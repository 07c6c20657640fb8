// The checked public operations: every shape, stride and dtype is looked at once here, so that kernels need not; a
// violation is a bug of the caller and throws. Operations over nothing return at once. Those on per-client maps are in
// grouped_operations.cpp.
#include "fedpdpo/backend/backend.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "contract.hpp"

namespace fedpdpo {

std::shared_ptr<void> Backend::allocate(std::size_t bytes) {
  std::shared_ptr<void> memory = do_allocate(bytes);
  allocated_->now += bytes;
  allocated_->peak = std::max(allocated_->peak, allocated_->now);
  void* const address = memory.get();
  return {address, [memory = std::move(memory), counter = allocated_, bytes](void*) mutable {
            memory.reset();
            counter->now -= bytes;
          }};
}

std::shared_ptr<void> Backend::allocate_pinned(std::size_t bytes) {
  const std::size_t size = std::max<std::size_t>(64, (bytes + 63) / 64 * 64);
  void* memory = std::aligned_alloc(64, size);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, size);
  return {memory, std::free};
}

CopyTicket Backend::copy_to_device_async(void* device, const void* pinned, std::size_t bytes) {
  copy_to_device(device, pinned, bytes);
  return {};
}

CopyTicket Backend::copy_to_host_async(void* pinned, const void* device, std::size_t bytes) {
  copy_to_host(pinned, device, bytes);
  return {};
}

void Backend::fill(View y, float value) {
  Contract("fill").matrix(y, "y");
  if (y.size() > 0) do_fill(y, value);
}

void Backend::copy(ConstView x, View y) {
  const Contract contract("copy");
  contract.layout(x, "x").layout(y, "y").require(x.rows == y.rows && x.cols == y.cols, "x and y of one shape");
  contract.require(x.dtype == y.dtype || (x.dtype != DType::i32 && y.dtype != DType::i32),
                   "integers are not converted");
  contract.require(x.dtype != DType::i64 && y.dtype != DType::i64, "i64 is for sums alone");
  if (x.size() > 0) do_copy(x, y);
}

void Backend::embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) {
  const Contract contract("embed");
  contract.matrix(tokens, "tokens", 1, y.rows, DType::i32).weights(table, "table").matrix(y, "y");
  contract.require(table.cols == y.cols, "table and y of one width");
  if (position_table.rows > 0) {
    contract.matrix(positions, "positions", 1, y.rows, DType::i32).weights(position_table, "position_table");
    contract.require(position_table.cols == y.cols, "position_table and y of one width");
  }
  if (y.size() > 0) do_embed(tokens, positions, table, position_table, y);
}

void Backend::rms_norm(ConstView x, ConstView w, float eps, View y) {
  Contract("rms_norm").matrix(x, "x").matrix(w, "w", 1, x.cols).activations(*this, y, "y", x.rows, x.cols);
  if (x.size() > 0) do_rms_norm(x, w, eps, y);
}

void Backend::rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  const Contract contract("rms_norm_backward");
  contract.matrix(x, "x").matrix(w, "w", 1, x.cols);
  contract.activations(*this, d_y, "d_y", x.rows, x.cols).matrix(d_x, "d_x", x.rows, x.cols);
  if (x.size() > 0) do_rms_norm_backward(x, w, eps, d_y, d_x, mode);
}

void Backend::layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) {
  const Contract contract("layer_norm");
  contract.matrix(x, "x").matrix(w, "w", 1, x.cols).matrix(b, "b", 1, x.cols);
  contract.activations(*this, y, "y", x.rows, x.cols);
  if (x.size() > 0) do_layer_norm(x, w, b, eps, y);
}

void Backend::layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  const Contract contract("layer_norm_backward");
  contract.matrix(x, "x").matrix(w, "w", 1, x.cols);
  contract.activations(*this, d_y, "d_y", x.rows, x.cols).matrix(d_x, "d_x", x.rows, x.cols);
  if (x.size() > 0) do_layer_norm_backward(x, w, eps, d_y, d_x, mode);
}

void Backend::head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  const Contract contract("head_norm");
  contract.activations(*this, x, "x").matrix(w, "w", 1, x.cols).matrix(y, "y", x.rows, x.cols, x.dtype);
  contract.require(head_dim > 0 && x.cols % head_dim == 0, "columns are whole heads");
  if (x.size() > 0) do_head_norm(x, w, head_dim, eps, y);
}

void Backend::head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y, View d_x) {
  const Contract contract("head_norm_backward");
  contract.activations(*this, x, "x").matrix(w, "w", 1, x.cols).matrix(d_y, "d_y", x.rows, x.cols, x.dtype);
  contract.matrix(d_x, "d_x", x.rows, x.cols, x.dtype);
  contract.require(head_dim > 0 && x.cols % head_dim == 0, "columns are whole heads");
  if (x.size() > 0) do_head_norm_backward(x, w, head_dim, eps, d_y, d_x);
}

void Backend::residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) {
  const Contract contract("residual_rms_norm");
  contract.matrix(x, "x").matrix(w, "w", 1, x.cols).matrix(sum, "sum", x.rows, x.cols);
  contract.activations(*this, y, "y", x.rows, x.cols).matrix(delta, "delta", x.rows, x.cols, y.dtype);
  if (x.size() > 0) do_residual_rms_norm(x, delta, w, eps, sum, y);
}

void Backend::do_residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) {
  do_add(x, delta, sum);
  do_rms_norm(sum, w, eps, y);
}

void Backend::residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum, View d_delta,
                                         View y) {
  const Contract contract("residual_rms_norm_backward");
  contract.matrix(sum, "sum").matrix(w, "w", 1, sum.cols).matrix(d_sum, "d_sum", sum.rows, sum.cols);
  contract.activations(*this, d_y, "d_y", sum.rows, sum.cols);
  contract.matrix(d_delta, "d_delta", sum.rows, sum.cols, d_y.dtype).matrix(y, "y", sum.rows, sum.cols, d_y.dtype);
  contract.require(sum.size() == 0 || (d_delta.data != d_y.data && y.data != d_y.data && y.data != d_delta.data),
                   "d_y, d_delta and y lie apart");
  if (sum.size() > 0) do_residual_rms_norm_backward(sum, w, eps, d_y, d_sum, d_delta, y);
}

void Backend::do_residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum,
                                            View d_delta, View y) {
  do_rms_norm_backward(sum, w, eps, d_y, d_sum, Write::accumulate);
  do_copy(d_sum, d_delta);
  do_rms_norm(sum, w, eps, y);
}

void Backend::add(ConstView a, ConstView b, View y) {
  const Contract contract("add");
  contract.matrix(a, "a").activations(*this, b, "b", a.rows, a.cols).matrix(y, "y", a.rows, a.cols);
  if (a.size() > 0) do_add(a, b, y);
}

void Backend::do_add(ConstView a, ConstView b, View y) {
  if (y.data == b.data) return do_axpy(1.0f, a, y, Write::accumulate);
  if (y.data != a.data) do_copy(a, y);
  do_axpy(1.0f, b, y, Write::accumulate);
}

void Backend::axpy(float alpha, ConstView x, View y, Write mode) {
  Contract("axpy").matrix(x, "x").matrix(y, "y", x.rows, x.cols);
  if (x.size() > 0) do_axpy(alpha, x, y, mode);
}

void Backend::scale_rows(ConstView weights, View x) {
  Contract("scale_rows").matrix(x, "x").matrix(weights, "weights", 1, x.rows);
  if (x.size() > 0) do_scale_rows(weights, x);
}

void Backend::gather_rows(ConstView x, ConstView rows, View y) {
  Contract("gather_rows").matrix(x, "x").matrix(rows, "rows", 1, y.rows, DType::i32).matrix(y, "y", y.rows, x.cols);
  if (y.size() > 0) do_gather_rows(x, rows, y);
}

void Backend::scatter_add_rows(ConstView x, ConstView rows, View y) {
  const Contract contract("scatter_add_rows");
  contract.matrix(x, "x").matrix(rows, "rows", 1, x.rows, DType::i32).matrix(y, "y", y.rows, x.cols);
  if (x.size() > 0) do_scatter_add_rows(x, rows, y);
}

void Backend::linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) {
  const Contract contract("linear");
  contract.weights(w, "w");
  contract.activations(*this, x, "x", x.rows, w.cols).activations(*this, y, "y", x.rows, w.rows);
  contract.require(w.dtype == DType::bf16 || (x.dtype == DType::f32 && y.dtype == DType::f32),
                   "bf16 activations go with bf16 weights");
  contract.require(w.rows > 0 && w.cols > 0, "weights are not empty");
  if (bias.cols > 0) contract.matrix(bias, "bias", 1, w.rows);
  if (x.rows > 0) do_linear(x, w, bias, y, mode);
}

void Backend::linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) {
  const Contract contract("linear_backward");
  contract.weights(w, "w");
  contract.activations(*this, d_y, "d_y", d_y.rows, w.rows).activations(*this, d_x, "d_x", d_y.rows, w.cols);
  contract.require(w.dtype == DType::bf16 || (d_y.dtype == DType::f32 && d_x.dtype == DType::f32),
                   "bf16 activations go with bf16 weights");
  contract.require(w.rows > 0 && w.cols > 0, "weights are not empty");
  if (d_y.rows > 0) do_linear_backward(d_y, w, d_x, mode);
}

void Backend::rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
                     View x) {
  const Contract contract("rotate");
  contract.activations(*this, x, "x").rotary({positions, cos, sin}, x.rows, head_dim);
  contract.require(head_dim > 0 && x.cols % head_dim == 0, "columns are whole heads");
  if (x.size() > 0 && cos.cols > 0) do_rotate(positions, cos, sin, head_dim, direction, x);
}

void Backend::attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out, View lse) {
  const Contract contract("attention");
  contract.activations(*this, qkv, "qkv").attention(plan, shape, qkv).matrix(lse, "lse", qkv.rows, shape.num_heads);
  contract.matrix(out, "out", qkv.rows, std::int64_t{shape.num_heads} * shape.head_dim, qkv.dtype);
  if (qkv.rows > 0) do_attention(plan, shape, qkv, out, lse);
}

void Backend::attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, ConstView out,
                                 ConstView lse, ConstView d_out, View d_qkv, const RotaryRows& rotary) {
  const Contract contract("attention_backward");
  const std::int64_t width = std::int64_t{shape.num_heads} * shape.head_dim;
  contract.activations(*this, qkv, "qkv").attention(plan, shape, qkv).matrix(lse, "lse", qkv.rows, shape.num_heads);
  contract.matrix(out, "out", qkv.rows, width, qkv.dtype).matrix(d_out, "d_out", qkv.rows, width, qkv.dtype);
  contract.matrix(d_qkv, "d_qkv", qkv.rows, qkv.cols, qkv.dtype)
      .require(d_qkv.data != qkv.data || qkv.rows == 0, "d_qkv is not qkv itself");
  if (rotary.cos.cols > 0) contract.rotary(rotary, qkv.rows, shape.head_dim);
  if (qkv.rows > 0) do_attention_backward(plan, shape, qkv, out, lse, d_out, d_qkv, rotary);
}

void Backend::gated_activation(Activation kind, ConstView x, View y) {
  Contract("gated_activation").activations(*this, y, "y").matrix(x, "x", y.rows, 2 * y.cols, y.dtype);
  if (y.size() > 0) do_gated_activation(kind, x, y);
}

void Backend::gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  const Contract contract("gated_activation_backward");
  contract.activations(*this, d_y, "d_y").matrix(x, "x", d_y.rows, 2 * d_y.cols, d_y.dtype);
  contract.matrix(d_x, "d_x", d_y.rows, 2 * d_y.cols, d_y.dtype);
  if (y.rows > 0) contract.matrix(y, "y", d_y.rows, d_y.cols, d_y.dtype);
  if (d_y.size() > 0) do_gated_activation_backward(kind, x, d_y, d_x, y);
}

void Backend::activation(Activation kind, ConstView x, View y) {
  Contract("activation").activations(*this, x, "x").matrix(y, "y", x.rows, x.cols, x.dtype);
  if (x.size() > 0) do_activation(kind, x, y);
}

void Backend::activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  const Contract contract("activation_backward");
  contract.activations(*this, x, "x").matrix(d_y, "d_y", x.rows, x.cols, x.dtype);
  contract.matrix(d_x, "d_x", x.rows, x.cols, x.dtype);
  if (y.rows > 0) contract.matrix(y, "y", x.rows, x.cols, x.dtype);
  if (x.size() > 0) do_activation_backward(kind, x, d_y, d_x, y);
}

void Backend::dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) {
  const Contract contract("dropout");
  contract.activations(*this, x, "x").activations(*this, y, "y", x.rows, x.cols);
  contract.require(p >= 0 && p < 1, "0 <= p < 1").require(first_row >= 0, "first_row is not negative");
  if (x.size() > 0) do_dropout(p, id, first_row, x, y, mode);
}

void Backend::log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) {
  const Contract contract("log_softmax");
  contract.matrix(logits, "logits").matrix(targets, "targets", 1, logits.rows, DType::i32);
  contract.matrix(log_prob, "log_prob", 1, logits.rows).matrix(lse, "lse", 1, logits.rows);
  contract.require(logits.cols > 0 || logits.rows == 0, "the vocabulary is not empty");
  if (logits.rows > 0) do_log_softmax(logits, targets, log_prob, lse);
}

void Backend::log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                                   View d_logits) {
  const Contract contract("log_softmax_backward");
  contract.matrix(logits, "logits").matrix(targets, "targets", 1, logits.rows, DType::i32);
  contract.matrix(lse, "lse", 1, logits.rows).matrix(coefficient, "coefficient", 1, logits.rows);
  contract.activations(*this, d_logits, "d_logits", logits.rows, logits.cols);
  const std::int64_t stride = (d_logits.dtype == DType::bf16 ? 2 : 1) * logits.stride;
  contract.require(d_logits.data != logits.data || logits.rows <= 1 || d_logits.stride == stride,
                   "over logits, d_logits' rows lie over their own");
  contract.require(logits.cols > 0 || logits.rows == 0, "the vocabulary is not empty");
  if (logits.rows > 0) do_log_softmax_backward(targets, lse, coefficient, logits, d_logits);
}

void Backend::adamw(const AdamW& options, View values, ConstView gradients, View first_moment, View second_moment) {
  const Contract contract("adamw");
  contract.matrix(values, "values").matrix(gradients, "gradients", values.rows, values.cols);
  contract.matrix(first_moment, "first_moment", values.rows, values.cols);
  contract.matrix(second_moment, "second_moment", values.rows, values.cols);
  contract.require(options.step >= 1, "steps count from 1");
  if (values.size() > 0) do_adamw(options, values, gradients, first_moment, second_moment);
}

double Backend::dot(ConstView x, ConstView y) {
  Contract("dot").matrix(x, "x").matrix(y, "y", x.rows, x.cols);
  return x.size() > 0 ? do_dot(x, y) : 0.0;
}

void Backend::adamw_spans(std::span<const AdamWSpan> spans) {
  const Contract contract("adamw_spans");
  for (const AdamWSpan& span : spans) {
    const std::int64_t n = span.values.cols;
    contract.matrix(span.values, "values", 1, n).matrix(span.gradients, "gradients", 1, n);
    contract.matrix(span.first_moment, "first_moment", 1, n).matrix(span.second_moment, "second_moment", 1, n);
    contract.require(span.options.step >= 1, "steps count from 1");
  }
  if (!spans.empty()) do_adamw_spans(spans);
}

void Backend::do_adamw_spans(std::span<const AdamWSpan> spans) {
  for (const AdamWSpan& span : spans)
    adamw(span.options, span.values, span.gradients, span.first_moment, span.second_moment);
}

void Backend::squared_norms(std::span<const ConstView> xs, std::span<double> norms) {
  const Contract contract("squared_norms");
  contract.require(xs.size() == norms.size(), "as many norms as views");
  for (const ConstView& x : xs) contract.matrix(x, "x", 1, x.cols);
  if (!xs.empty()) do_squared_norms(xs, norms);
}

void Backend::do_squared_norms(std::span<const ConstView> xs, std::span<double> norms) {
  for (std::size_t i = 0; i < xs.size(); ++i) norms[i] = squared_norm(xs[i]);
}

void Backend::prepare(const AttentionPlan&) {}

void Backend::run(Recording&, const std::function<void()>& work) { work(); }

void Backend::block_peaks(ConstView values, ConstView offsets, View peaks) {
  const Contract contract("block_peaks");
  contract.vector(values, "values", DType::f32).matrix(peaks, "peaks", 1, peaks.cols);
  contract.matrix(offsets, "offsets", 1, peaks.cols + 1, DType::i32);
  if (peaks.cols > 0) do_block_peaks(values, offsets, peaks);
}

void Backend::add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding,
                        View sums) {
  const Contract contract("add_terms");
  contract.vector(values, "values", DType::f32).matrix(sums, "sums", 1, values.cols, DType::i64);
  contract.matrix(exponents, "exponents", 1, exponents.cols, DType::i32);
  contract.matrix(offsets, "offsets", 1, exponents.cols + 1, DType::i32);
  contract.require(exponents.cols > 0 || values.cols == 0, "every element is in a block");
  if (values.cols > 0) do_add_terms(values, weight, offsets, exponents, coding, sums);
}

void Backend::round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) {
  const Contract contract("round_sums");
  contract.vector(sums, "sums", DType::i64).matrix(y, "y", 1, sums.cols);
  contract.matrix(exponents, "exponents", 1, exponents.cols, DType::i32);
  contract.matrix(offsets, "offsets", 1, exponents.cols + 1, DType::i32);
  contract.require(exponents.cols > 0 || sums.cols == 0, "every element is in a block");
  if (sums.cols > 0) do_round_sums(sums, offsets, exponents, coding, y);
}

}  // namespace fedpdpo
