// CpuBackend: cuts rows over threads and hands them to the kernels; products go to Gemm. Its scratch grows and never
// shrinks. A backend is used by one thread at a time.
#pragma once

#include <string>
#include <vector>

#include "cpu/gemm.hpp"
#include "cpu/scratch.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cpu {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  bool computes_on_host_memory() const override { return true; }
  std::string device_identity() const override { return {}; }
  void* native_stream() const override { return nullptr; }
  void copy_to_device(void* device, const void* host, std::size_t bytes) override;
  void copy_to_host(void* host, const void* device, std::size_t bytes) override;
  void synchronize() override {}

 private:
  std::shared_ptr<void> do_allocate(std::size_t bytes) override;
  void do_fill(View y, float value) override;
  void do_copy(ConstView x, View y) override;
  void do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) override;
  void do_rms_norm(ConstView x, ConstView w, float eps, View y) override;
  void do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override;
  void do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) override;
  void do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override;
  void do_axpy(float alpha, ConstView x, View y, Write mode) override;
  void do_scale_rows(ConstView weights, View x) override;
  void do_gather_rows(ConstView x, ConstView rows, View y) override;
  void do_scatter_add_rows(ConstView x, ConstView rows, View y) override;
  void do_linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) override;
  void do_linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) override;
  void do_grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x,
                         ConstClientMatrix p, View y, Write mode) override;
  void do_grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x, ClientMatrix d_p,
                        Write mode) override;
  void do_grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) override;
  void do_grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b, Write mode) override;
  void do_grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                       View z) override;
  void do_grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                                ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g,
                                Write d_g_mode) override;
  void do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) override;
  void do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                             View d_x) override;
  void do_rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
                 View x) override;
  void do_attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out, View lse) override;
  void do_attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, ConstView out,
                             ConstView lse, ConstView d_out, View d_qkv, const RotaryRows& rotary) override;
  void do_gated_activation(Activation kind, ConstView x, View y) override;
  void do_gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) override;
  void do_activation(Activation kind, ConstView x, View y) override;
  void do_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) override;
  void do_dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) override;
  void do_log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) override;
  void do_log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                               View d_logits) override;
  void do_adamw(const AdamW& options, View values, ConstView gradients, View first_moment, View second_moment) override;
  double do_dot(ConstView x, ConstView y) override;
  void do_block_peaks(ConstView values, ConstView offsets, View peaks) override;
  void do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding,
                    View sums) override;
  void do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) override;

  /// body(begin, end) over rows; elements says how much work a row is.
  template <class Body>
  void over_rows(std::int64_t rows, std::int64_t cols, Body body) const;
  /// body(begin, end) over columns, cut at multiples of 64.
  template <class Body>
  void over_columns(std::int64_t rows, std::int64_t cols, Body body) const;
  template <class Task>
  void over_attention_tasks(const AttentionPlan& plan, const AttentionShape& shape, Task task);

  int num_threads_;
  Gemm gemm_;
  std::vector<Scratch<float>> scratch_;  // by thread
  Scratch<double> partial_sums_;
};

}  // namespace fedpdpo::cpu
