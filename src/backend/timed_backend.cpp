// Every operation, timed and handed on.
#include "fedpdpo/backend/timed_backend.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <new>

namespace fedpdpo {
namespace {

using Members = std::span<const MemberRows>;

std::string of_shape(const char* operation, ConstView w) {
  return std::string(operation) + " " + std::to_string(w.rows) + "x" + std::to_string(w.cols);
}

/// Of an operation, by its arguments alone.
struct Cost {
  double bytes = 0, operations = 0;
  Cost(double moved) : bytes(moved) {}
  Cost(double moved, double computed) : bytes(moved), operations(computed) {}
};

/// Operations of a product of (m, k) and (k, n).
double product(std::int64_t m, std::int64_t n, std::int64_t k) {
  return 2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

/// Pairs of a query row and a key row that it attends to.
double attended_pairs(const AttentionPlan& plan) {
  double pairs = 0;
  for (const Segment& s : plan.segments) {
    const double rows = s.end - s.begin, context = s.context_end - s.context_begin;
    pairs += rows * (context + (rows + 1) / 2);
  }
  return pairs;
}

/// Bytes of views, each read or written once.
double moved(std::initializer_list<ConstView> views) {
  double bytes = 0;
  for (const ConstView& view : views)
    bytes += static_cast<double>(view.size()) * static_cast<double>(dtype_size(view.dtype));
  return bytes;
}
double moved(ConstView y, Write mode) { return (mode == Write::accumulate ? 2 : 1) * moved({y}); }
/// Of the members' matrices.
double moved(Members members, ConstClientMatrix p, Write mode = Write::overwrite) {
  return static_cast<double>(members.size()) * moved(view_of(p.data, p.rows, p.cols), mode);
}

ConstView thin(ConstView u, const LowRankSite& site) { return u.columns(site.u_begin, site.u_begin + site.b.cols); }

class TimedBackend final : public Backend {
 public:
  /// Without an inner one nothing is computed.
  TimedBackend(Backend* inner, OperationTimes& times) : inner_(inner), times_(times) {}

  std::string name() const override { return inner_ ? inner_->name() : "count"; }
  std::string description() const override {
    return inner_ ? inner_->description() + ", every operation timed" : "a device that computes nothing";
  }
  bool computes_on_host_memory() const override { return inner_ && inner_->computes_on_host_memory(); }
  bool supports_bf16_activations() const override { return !inner_ || inner_->supports_bf16_activations(); }
  std::string device_identity() const override { return inner_ ? inner_->device_identity() : "none"; }
  void* native_stream() const override { return inner_ ? inner_->native_stream() : nullptr; }
  std::optional<DeviceMemory> memory() const override { return inner_ ? inner_->memory() : std::nullopt; }
  void copy_to_device(void* device, const void* host, std::size_t bytes) override {
    timed("copy_to_device", static_cast<double>(bytes), [&] { inner_->copy_to_device(device, host, bytes); });
  }
  void copy_to_host(void* host, const void* device, std::size_t bytes) override {
    timed("copy_to_host", static_cast<double>(bytes), [&] { inner_->copy_to_host(host, device, bytes); });
  }
  void prepare(const AttentionPlan& plan) override {
    timed("prepare", 0, [&] { inner_->prepare(plan); });
  }
  void synchronize() override {
    if (inner_) inner_->synchronize();
  }

 private:
  template <class Work>
  void timed(const std::string& operation, Cost cost, Work work) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    if (inner_) {
      work();
      inner_->synchronize();
    }
    OperationTime& time = times_[operation];
    time.seconds += inner_ ? std::chrono::duration<double>(Clock::now() - start).count() : 0;
    time.calls += 1;
    time.bytes += cost.bytes;
    time.operations += cost.operations;
  }

  // What is never read needs no memory of its own: pages of zeros.
  std::shared_ptr<void> do_allocate(std::size_t bytes) override {
    if (inner_) return inner_->allocate(bytes);
    std::shared_ptr<void> memory(std::calloc(std::max<std::size_t>(bytes, 1), 1), std::free);
    return memory ? memory : throw std::bad_alloc();
  }
  void do_fill(View y, float value) override {
    timed("fill", moved({y}), [&] { inner_->fill(y, value); });
  }
  void do_copy(ConstView x, View y) override {
    timed("copy", moved({x, y}), [&] { inner_->copy(x, y); });
  }
  void do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) override {
    const double a_row = static_cast<double>(y.size());
    const double positional = position_table.rows > 0 ? static_cast<double>(dtype_size(position_table.dtype)) : 0;
    timed("embed", moved({y}) + a_row * (static_cast<double>(dtype_size(table.dtype)) + positional),
          [&] { inner_->embed(tokens, positions, table, position_table, y); });
  }
  void do_rms_norm(ConstView x, ConstView w, float eps, View y) override {
    timed("rms_norm", moved({x, y}), [&] { inner_->rms_norm(x, w, eps, y); });
  }
  void do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override {
    timed("rms_norm_backward", moved({x, d_y}) + moved(d_x, mode),
          [&] { inner_->rms_norm_backward(x, w, eps, d_y, d_x, mode); });
  }
  void do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) override {
    timed("layer_norm", moved({x, y}), [&] { inner_->layer_norm(x, w, b, eps, y); });
  }
  void do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override {
    timed("layer_norm_backward", moved({x, d_y}) + moved(d_x, mode),
          [&] { inner_->layer_norm_backward(x, w, eps, d_y, d_x, mode); });
  }
  void do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) override {
    timed("head_norm", moved({x, y}), [&] { inner_->head_norm(x, w, head_dim, eps, y); });
  }
  void do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                             View d_x) override {
    timed("head_norm_backward", moved({x, d_y, d_x}),
          [&] { inner_->head_norm_backward(x, w, head_dim, eps, d_y, d_x); });
  }
  void do_residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) override {
    timed("residual_rms_norm", moved({x, delta, sum, y}), [&] { inner_->residual_rms_norm(x, delta, w, eps, sum, y); });
  }
  void do_residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum, View d_delta,
                                     View y) override {
    timed("residual_rms_norm_backward", moved({sum, d_y, d_delta, y}) + 2 * moved({d_sum}),
          [&] { inner_->residual_rms_norm_backward(sum, w, eps, d_y, d_sum, d_delta, y); });
  }
  void do_add(ConstView a, ConstView b, View y) override {
    timed("add", moved({a, b, y}), [&] { inner_->add(a, b, y); });
  }
  void do_axpy(float alpha, ConstView x, View y, Write mode) override {
    timed("axpy", moved({x}) + moved(y, mode), [&] { inner_->axpy(alpha, x, y, mode); });
  }
  void do_scale_rows(ConstView weights, View x) override {
    timed("scale_rows", 2 * moved({x}), [&] { inner_->scale_rows(weights, x); });
  }
  void do_gather_rows(ConstView x, ConstView rows, View y) override {
    timed("gather_rows", 2 * moved({y}), [&] { inner_->gather_rows(x, rows, y); });
  }
  void do_scatter_add_rows(ConstView x, ConstView rows, View y) override {
    timed("scatter_add_rows", 3 * moved({x}), [&] { inner_->scatter_add_rows(x, rows, y); });
  }
  void do_linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) override {
    timed(of_shape("linear", w), {moved({x, w}) + moved(y, mode), product(x.rows, w.rows, w.cols)},
          [&] { inner_->linear(x, w, bias, y, mode); });
  }
  void do_linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) override {
    timed(of_shape("linear_backward", w), {moved({d_y, w}) + moved(d_x, mode), product(d_y.rows, w.rows, w.cols)},
          [&] { inner_->linear_backward(d_y, w, d_x, mode); });
  }
  void do_grouped_matmul(Members members, Multiply how, float alpha, ConstView x, ConstClientMatrix p, View y,
                         Write mode) override {
    timed("grouped_matmul", {moved(members, p) + moved({x}) + moved(y, mode), product(x.rows, p.rows, p.cols)},
          [&] { inner_->grouped_matmul(members, how, alpha, x, p, y, mode); });
  }
  void do_grouped_outer(Members members, float alpha, ConstView d_y, ConstView x, ClientMatrix d_p,
                        Write mode) override {
    timed("grouped_outer", {moved({d_y, x}) + moved(members, d_p, mode), product(x.rows, d_p.rows, d_p.cols)},
          [&] { inner_->grouped_outer(members, alpha, d_y, x, d_p, mode); });
  }
  void do_low_rank_up(Members members, float alpha, ConstView u, std::span<const LowRankSite> sites, View y,
                      Write mode) override {
    Cost cost(0);
    for (const LowRankSite& site : sites) {
      cost.bytes += moved({thin(u, site)}) + moved(members, site.b) + moved(y.columns(site.begin, site.end), mode);
      cost.operations += product(u.rows, site.b.rows, site.b.cols);
    }
    timed("low_rank_up", cost, [&] { inner_->low_rank_up(members, alpha, u, sites, y, mode); });
  }
  void do_low_rank_up_backward(Members members, float alpha, ConstView u, std::span<const LowRankSite> sites,
                               ConstView d_y, View d_u, Write d_b_mode) override {
    Cost cost(0);
    for (const LowRankSite& site : sites) {
      const bool wanted = site.d_b.data != nullptr;
      cost.bytes += moved({d_y.columns(site.begin, site.end), thin(u, site), thin(d_u, site)}) +
                    moved(members, site.b) + (wanted ? moved(members, site.d_b, d_b_mode) : 0);
      cost.operations += (wanted ? 2 : 1) * product(u.rows, site.b.rows, site.b.cols);
    }
    timed("low_rank_up_backward", cost,
          [&] { inner_->low_rank_up_backward(members, alpha, u, sites, d_y, d_u, d_b_mode); });
  }
  void do_grouped_add_bias(Members members, ConstClientMatrix b, View y) override {
    timed("grouped_add_bias", 2 * moved({y}), [&] { inner_->grouped_add_bias(members, b, y); });
  }
  void do_grouped_column_sum(Members members, ConstView d_y, ClientMatrix d_b, Write mode) override {
    timed("grouped_column_sum", moved({d_y}) + moved(members, d_b, mode),
          [&] { inner_->grouped_column_sum(members, d_y, d_b, mode); });
  }
  void do_grouped_gate(Members members, ConstView h, ConstView a, ConstClientMatrix g, View z) override {
    timed("grouped_gate", moved({h, a, z}), [&] { inner_->grouped_gate(members, h, a, g, z); });
  }
  void do_grouped_gate_backward(Members members, ConstView h, ConstView a, ConstClientMatrix g, ConstView d_z, View d_h,
                                Write d_h_mode, View d_a, ClientMatrix d_g, Write d_g_mode) override {
    const double bytes = moved({h, a, d_z, d_a}) + moved(d_h, d_h_mode) + moved(members, d_g, d_g_mode);
    timed("grouped_gate_backward", bytes,
          [&] { inner_->grouped_gate_backward(members, h, a, g, d_z, d_h, d_h_mode, d_a, d_g, d_g_mode); });
  }
  void do_rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
                 View x) override {
    const double rotated = 2.0 * static_cast<double>(cos.cols) / head_dim;
    timed("rotate", 2 * rotated * moved({x}), [&] { inner_->rotate(positions, cos, sin, head_dim, direction, x); });
  }
  void do_attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                    View lse) override {
    timed("attention", {moved({qkv, out, lse}), 4 * attended_pairs(plan) * static_cast<double>(out.cols)},
          [&] { inner_->attention(plan, shape, qkv, out, lse); });
  }
  void do_attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, ConstView out,
                             ConstView lse, ConstView d_out, View d_qkv, const RotaryRows& rotary) override {
    timed("attention_backward",
          {moved({qkv, out, lse, d_out, d_qkv}), 10 * attended_pairs(plan) * static_cast<double>(out.cols)},
          [&] { inner_->attention_backward(plan, shape, qkv, out, lse, d_out, d_qkv, rotary); });
  }
  void do_gated_activation(Activation kind, ConstView x, View y) override {
    timed("gated_activation", moved({x, y}), [&] { inner_->gated_activation(kind, x, y); });
  }
  void do_gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) override {
    timed("gated_activation_backward", moved({x, d_y, d_x, y}),
          [&] { inner_->gated_activation_backward(kind, x, d_y, d_x, y); });
  }
  void do_activation(Activation kind, ConstView x, View y) override {
    timed("activation", moved({x, y}), [&] { inner_->activation(kind, x, y); });
  }
  void do_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) override {
    timed("activation_backward", moved({x, d_y, d_x, y}), [&] { inner_->activation_backward(kind, x, d_y, d_x, y); });
  }
  void do_dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) override {
    timed("dropout", moved({x}) + moved(y, mode), [&] { inner_->dropout(p, id, first_row, x, y, mode); });
  }
  void do_log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) override {
    timed("log_softmax", moved({logits}), [&] { inner_->log_softmax(logits, targets, log_prob, lse); });
  }
  void do_log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                               View d_logits) override {
    timed("log_softmax_backward", moved({logits, d_logits}),
          [&] { inner_->log_softmax_backward(targets, lse, coefficient, logits, d_logits); });
  }
  void do_adamw(const AdamW& options, View values, ConstView gradients, View first_moment,
                View second_moment) override {
    timed("adamw", 7 * moved({values}),
          [&] { inner_->adamw(options, values, gradients, first_moment, second_moment); });
  }
  void do_adamw_spans(std::span<const AdamWSpan> spans) override {
    double bytes = 0;
    for (const AdamWSpan& span : spans) bytes += 7 * moved({span.values});
    timed("adamw_spans", bytes, [&] { inner_->adamw_spans(spans); });
  }
  void do_squared_norms(std::span<const ConstView> xs, std::span<double> norms) override {
    double bytes = 0;
    for (const ConstView& x : xs) bytes += moved({x});
    timed("squared_norms", bytes, [&] { inner_->squared_norms(xs, norms); });
  }
  void do_block_peaks(ConstView values, ConstView offsets, View peaks) override {
    timed("block_peaks", moved({values}), [&] { inner_->block_peaks(values, offsets, peaks); });
  }
  void do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding,
                    View sums) override {
    timed("add_terms", moved({values}) + 2 * moved({sums}),
          [&] { inner_->add_terms(values, weight, offsets, exponents, coding, sums); });
  }
  void do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) override {
    timed("round_sums", moved({sums, y}), [&] { inner_->round_sums(sums, offsets, exponents, coding, y); });
  }
  double do_dot(ConstView x, ConstView y) override {
    double result = 0;
    timed("dot", moved({x, y}), [&] { result = inner_->dot(x, y); });
    return result;
  }

  Backend* inner_;
  OperationTimes& times_;
};

}  // namespace

std::unique_ptr<Backend> make_timed_backend(Backend& inner, OperationTimes& times) {
  return std::make_unique<TimedBackend>(&inner, times);
}

std::unique_ptr<Backend> make_counting_backend(OperationTimes& times) {
  return std::make_unique<TimedBackend>(nullptr, times);
}

}  // namespace fedpdpo
