// CudaBackend: hands the operations to the kernels and to cuBLASLt on one stream, beside which another one copies. It
// never waits, but for numbers that go to the host, and in the debug mode.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "cuda/attention.hpp"
#include "cuda/device.hpp"
#include "cuda/gemm.hpp"
#include "cuda/products.hpp"
#include "cuda/side_copies.hpp"
#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo::cuda {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);

  std::string name() const override { return "cuda"; }
  std::string description() const override;
  bool computes_on_host_memory() const override { return false; }
  bool supports_bf16_activations() const override { return true; }
  std::string device_identity() const override { return device_->identity(); }
  std::optional<DeviceMemory> memory() const override;
  void* native_stream() const override { return device_->stream(); }
  void copy_to_device(void* device, const void* host, std::size_t bytes) override;
  void copy_to_host(void* host, const void* device, std::size_t bytes) override;
  std::shared_ptr<void> allocate_pinned(std::size_t bytes) override { return allocate_page_locked(bytes); }
  CopyTicket copy_to_device_async(void* device, const void* pinned, std::size_t bytes) override;
  CopyTicket copy_to_host_async(void* pinned, const void* device, std::size_t bytes) override;
  void wait_for(const CopyTicket& copy) override { copies_.wait_for(copy); }
  void finish(const CopyTicket& copy) override { copies_.finish(copy); }
  void synchronize() override;
  void prepare(const AttentionPlan& plan) override { plan_.get(plan); }
  /// CUDA graphs; not in the debug mode, which looks at every operation's output.
  bool supports_recording() const override { return !check_outputs_; }
  std::unique_ptr<Recording> make_recording() override;
  void run(Recording& recording, const std::function<void()>& work) override;

 private:
  std::shared_ptr<void> do_allocate(std::size_t bytes) override;
  void do_fill(View y, float value) override;
  void do_copy(ConstView x, View y) override;
  void do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) override;
  void do_rms_norm(ConstView x, ConstView w, float eps, View y) override;
  void do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override;
  void do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) override;
  void do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) override;
  void do_add(ConstView a, ConstView b, View y) override;
  void do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) override;
  void do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                             View d_x) override;
  void do_residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) override;
  void do_residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum, View d_delta,
                                     View y) override;
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
  void do_low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u, std::span<const LowRankSite> sites,
                      View y, Write mode) override;
  void do_low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                               std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode) override;
  void do_grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) override;
  void do_grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b, Write mode) override;
  void do_grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                       View z) override;
  void do_grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                                ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g,
                                Write d_g_mode) override;
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
  void do_adamw_spans(std::span<const AdamWSpan> spans) override;
  double do_dot(ConstView x, ConstView y) override;
  void do_squared_norms(std::span<const ConstView> xs, std::span<double> norms) override;
  void do_block_peaks(ConstView values, ConstView offsets, View peaks) override;
  void do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents, TermCoding coding,
                    View sums) override;
  void do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) override;

  cudaStream_t stream() const { return device_->stream(); }
  /// A frozen product: f32 activations become bf16 where the weights are.
  void frozen_product(const char* operation, ConstView x, ConstView w, bool transpose_w, View y, Write mode);
  /// The debug mode's look at what an operation wrote: DeviceError that names it where its kernels failed or NaN is in.
  void written(const char* operation, std::initializer_list<ConstView> outputs);
  void written(const char* operation, std::span<const MemberRows> members, std::initializer_list<ConstView> rows);
  void written(const char* operation, std::span<const MemberRows> members, ConstClientMatrix matrix);

  std::shared_ptr<Device> device_;
  bool check_outputs_;
  Rounding rounding_;  // of the factors of clients' own large products
  SideCopies copies_;
  Gemm gemm_;
  PlanUpload plan_;
  Scratch<std::uint16_t> half_;
  Scratch<float> delta_;
  Scratch<double> sums_;
  Scratch<unsigned long long> first_nan_;
  std::vector<ProductTask> tasks_;
};

}  // namespace fedpdpo::cuda
