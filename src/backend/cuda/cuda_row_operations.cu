// The operations by rows and elements: one kernel each, and the debug mode's look at what it wrote.
#include "cuda/cuda_backend.hpp"
#include "cuda/kernels.hpp"

namespace fedpdpo::cuda {

void CudaBackend::do_fill(View y, float value) { cuda::fill(stream(), y, value); }

void CudaBackend::do_copy(ConstView x, View y) {
  cuda::copy(stream(), x, y);
  written("copy", {y});
}

void CudaBackend::do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) {
  cuda::embed(stream(), tokens, positions, table, position_table, y);
  written("embed", {y});
}

void CudaBackend::do_rms_norm(ConstView x, ConstView w, float eps, View y) {
  cuda::rms_norm(stream(), x, w, eps, y);
  written("rms_norm", {y});
}

void CudaBackend::do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  cuda::rms_norm_backward(stream(), x, w, eps, d_y, d_x, mode);
  written("rms_norm_backward", {d_x});
}

void CudaBackend::do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) {
  cuda::layer_norm(stream(), x, w, b, eps, y);
  written("layer_norm", {y});
}

void CudaBackend::do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  cuda::layer_norm_backward(stream(), x, w, eps, d_y, d_x, mode);
  written("layer_norm_backward", {d_x});
}

void CudaBackend::do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  cuda::head_norm(stream(), x, w, head_dim, eps, y);
  written("head_norm", {y});
}

void CudaBackend::do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                                        View d_x) {
  cuda::head_norm_backward(stream(), x, w, head_dim, eps, d_y, d_x);
  written("head_norm_backward", {d_x});
}

void CudaBackend::do_add(ConstView a, ConstView b, View y) {
  cuda::add(stream(), a, b, y);
  written("add", {y});
}

void CudaBackend::do_residual_rms_norm(ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) {
  cuda::residual_rms_norm(stream(), x, delta, w, eps, sum, y);
  written("residual_rms_norm", {sum, y});
}

void CudaBackend::do_residual_rms_norm_backward(ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum,
                                                View d_delta, View y) {
  cuda::residual_rms_norm_backward(stream(), sum, w, eps, d_y, d_sum, d_delta, y);
  written("residual_rms_norm_backward", {d_sum, d_delta, y});
}

void CudaBackend::do_axpy(float alpha, ConstView x, View y, Write mode) {
  cuda::axpy(stream(), alpha, x, y, mode);
  written("axpy", {y});
}

void CudaBackend::do_scale_rows(ConstView weights, View x) {
  cuda::scale_rows(stream(), weights, x);
  written("scale_rows", {x});
}

void CudaBackend::do_gather_rows(ConstView x, ConstView rows, View y) {
  cuda::gather_rows(stream(), x, rows, y);
  written("gather_rows", {y});
}

void CudaBackend::do_scatter_add_rows(ConstView x, ConstView rows, View y) {
  cuda::scatter_add_rows(stream(), x, rows, y);
  written("scatter_add_rows", {y});
}

void CudaBackend::do_grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) {
  member_bias(stream(), members, b, y);
  written("grouped_add_bias", members, {y});
}

void CudaBackend::do_grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b,
                                        Write mode) {
  member_column_sum(stream(), members, d_y, d_b, mode);
  written("grouped_column_sum", members, d_b);
}

void CudaBackend::do_grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                                  View z) {
  member_gate(stream(), members, h, a, g, z);
  written("grouped_gate", members, {z});
}

void CudaBackend::do_grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a,
                                           ConstClientMatrix g, ConstView d_z, View d_h, Write d_h_mode, View d_a,
                                           ClientMatrix d_g, Write d_g_mode) {
  member_gate_backward(stream(), members, h, a, g, d_z, d_h, d_h_mode, d_a, d_g, d_g_mode);
  written("grouped_gate_backward", members, {d_h, d_a});
  written("grouped_gate_backward", members, d_g);
}

void CudaBackend::do_rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim,
                            Rotation direction, View x) {
  cuda::rotate(stream(), positions, cos, sin, head_dim, direction, x);
  written("rotate", {x});
}

void CudaBackend::do_gated_activation(Activation kind, ConstView x, View y) {
  cuda::gated_activation(stream(), kind, x, y);
  written("gated_activation", {y});
}

void CudaBackend::do_gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  cuda::gated_activation_backward(stream(), kind, x, d_y, d_x, y);
  written("gated_activation_backward", {d_x, y});
}

void CudaBackend::do_activation(Activation kind, ConstView x, View y) {
  cuda::activation(stream(), kind, x, y);
  written("activation", {y});
}

void CudaBackend::do_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  cuda::activation_backward(stream(), kind, x, d_y, d_x, y);
  written("activation_backward", {d_x, y});
}

void CudaBackend::do_dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) {
  cuda::dropout(stream(), p, id, first_row, x, y, mode);
  written("dropout", {y});
}

void CudaBackend::do_log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) {
  cuda::log_softmax(stream(), logits, targets, log_prob, lse);
  written("log_softmax", {log_prob, lse});
}

void CudaBackend::do_log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                                          View d_logits) {
  cuda::log_softmax_backward(stream(), targets, lse, coefficient, logits, d_logits);
  written("log_softmax_backward", {d_logits});
}

void CudaBackend::do_adamw(const AdamW& options, View values, ConstView gradients, View first_moment,
                           View second_moment) {
  for (std::int64_t row = 0; row < values.rows; ++row) {
    const auto of = [row](auto view) { return view.row_range(row, row + 1); };
    const AdamWSpan span{options, of(values), of(gradients), of(first_moment), of(second_moment)};
    cuda::adamw(stream(), {&span, 1});
  }
  written("adamw", {values, first_moment, second_moment});
}

void CudaBackend::do_adamw_spans(std::span<const AdamWSpan> spans) {
  cuda::adamw(stream(), spans);
  for (const AdamWSpan& span : spans) written("adamw", {span.values, span.first_moment, span.second_moment});
}

void CudaBackend::do_block_peaks(ConstView values, ConstView offsets, View peaks) {
  cuda::block_peaks(stream(), values, offsets, peaks);
  written("block_peaks", {});  // NaN is among what it finds
}

void CudaBackend::do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents,
                               TermCoding coding, View sums) {
  cuda::add_terms(stream(), values, weight, offsets, exponents, coding, sums);
  written("add_terms", {sums});
}

void CudaBackend::do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) {
  cuda::round_sums(stream(), sums, offsets, exponents, coding, y);
  written("round_sums", {y});
}

}  // namespace fedpdpo::cuda
