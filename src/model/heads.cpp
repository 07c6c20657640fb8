// Bottleneck adapter, LLM head, reward head.
#include "fedpdpo/model/heads.hpp"

#include <algorithm>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

Heads::Heads(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout)
    : backend_(backend), config_(config), weights_(weights), layout_(layout) {}

View Heads::scratch(Tensor& tensor, std::int64_t rows, std::int64_t cols) {
  if (tensor.rows() < rows || tensor.cols() != cols)
    tensor = Tensor(backend_, std::max(rows, tensor.rows() + tensor.rows() / 4), cols);
  return tensor.first(rows);
}

ConstView Heads::bottleneck(std::span<const MemberRows> members, const CohortParameters& p, ConstView h) {
  if (layout_.bottleneck_down < 0) return h;
  const std::int64_t m = layout_.options().bottleneck, d = config_.hidden_size;
  View inner = scratch(inner_, h.rows, m), active = scratch(inner_active_, h.rows, m), z = scratch(z_, h.rows, d);
  const auto matrix = [&](int index) { return layout_.matrix(index, p.values, p.slot_stride); };
  backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, h, matrix(layout_.bottleneck_down), inner,
                          Write::overwrite);
  backend_.grouped_add_bias(members, matrix(layout_.bottleneck_bias), inner);
  backend_.activation(Activation::gelu_erf, inner, active);
  if (layout_.bottleneck_gate < 0) {
    backend_.copy(h, z);
    backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, active, matrix(layout_.bottleneck_up), z,
                            Write::accumulate);
  } else {
    View outer = scratch(outer_, h.rows, d);
    backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, active, matrix(layout_.bottleneck_up), outer,
                            Write::overwrite);
    backend_.grouped_gate(members, h, outer, matrix(layout_.bottleneck_gate), z);
  }
  return z;
}

void Heads::bottleneck_backward(std::span<const MemberRows> members, const CohortParameters& p,
                                const CohortGradients& g, ConstView h, ConstView d_z, View* d_h) {
  if (layout_.bottleneck_down < 0) {
    if (d_h && d_h->data != d_z.data) backend_.copy(d_z, *d_h);
    return;
  }
  const bool wanted = g.wants(Group::bottleneck);
  if (!wanted && !d_h) return;
  const std::int64_t m = layout_.options().bottleneck, d = config_.hidden_size;
  const auto matrix = [&](int index) { return layout_.matrix(index, p.values, p.slot_stride); };
  const auto gradient = [&](int index) { return layout_.matrix(index, g.values, g.slot_stride); };
  ConstView inner = inner_.first(h.rows), active = inner_active_.first(h.rows);
  View d_inner = scratch(d_inner_, h.rows, m);
  ConstView d_outer = d_z;
  View d_h_direct = d_h ? *d_h : View{};
  if (layout_.bottleneck_gate >= 0) {
    View d_a = scratch(d_outer_, h.rows, d);
    // The gate's backward gives d_h as well; without a taker, or in place of d_z, it goes to scratch first.
    View direct = scratch(d_h_unused_, h.rows, d);
    // Where the gate is not trained its gradient is computed all the same, into a place of its own.
    ClientMatrix d_gate{scratch(d_gate_unused_, 1, d).f32(), 1, d, 0};
    if (wanted) d_gate = gradient(layout_.bottleneck_gate);
    backend_.grouped_gate_backward(members, h, outer_.first(h.rows), matrix(layout_.bottleneck_gate), d_z, direct,
                                   Write::overwrite, d_a, d_gate, g.write);
    if (d_h) backend_.copy(direct, d_h_direct);
    d_outer = d_a;
  } else if (d_h && d_h->data != d_z.data) {
    backend_.copy(d_z, d_h_direct);
  }
  backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_outer, matrix(layout_.bottleneck_up), d_inner,
                          Write::overwrite);
  if (wanted) backend_.grouped_outer(members, 1.0f, d_outer, active, gradient(layout_.bottleneck_up), g.write);
  backend_.activation_backward(Activation::gelu_erf, inner, d_inner, d_inner);
  if (wanted) {
    backend_.grouped_outer(members, 1.0f, d_inner, h, gradient(layout_.bottleneck_down), g.write);
    backend_.grouped_column_sum(members, d_inner, gradient(layout_.bottleneck_bias), g.write);
  }
  if (d_h)
    backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_inner, matrix(layout_.bottleneck_down), d_h_direct,
                            Write::accumulate);
}

void Heads::logits(std::span<const MemberRows> members, const CohortParameters& p, ConstView z, View logits) {
  if (layout_.head_weight >= 0) {
    backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, z,
                            layout_.matrix(layout_.head_weight, p.values, p.slot_stride), logits, Write::overwrite);
    return;
  }
  backend_.linear(z, weights_.head, {}, logits, Write::overwrite);
  if (layout_.head_q < 0) return;
  View low_rank = scratch(low_rank_, z.rows, layout_.options().head_rank);
  backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, z,
                          layout_.matrix(layout_.head_p, p.values, p.slot_stride), low_rank, Write::overwrite);
  backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, low_rank,
                          layout_.matrix(layout_.head_q, p.values, p.slot_stride), logits, Write::accumulate);
}

bool Heads::takes_half_gradients() const {
  if (layout_.head_weight >= 0 || weights_.head.dtype != DType::bf16 || !backend_.supports_bf16_activations())
    return false;
  // Products of a low-rank head take bf16 rows of whole 16 bytes.
  return layout_.head_q < 0 || config_.vocab_size % 8 == 0;
}

void Heads::logits_backward(std::span<const MemberRows> members, const CohortParameters& p, const CohortGradients& g,
                            ConstView z, ConstView d_logits, View d_z) {
  const bool wanted = g.wants(Group::head);
  if (layout_.head_weight >= 0) {
    backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_logits,
                            layout_.matrix(layout_.head_weight, p.values, p.slot_stride), d_z, Write::overwrite);
    if (wanted)
      backend_.grouped_outer(members, 1.0f, d_logits, z, layout_.matrix(layout_.head_weight, g.values, g.slot_stride),
                             g.write);
    return;
  }
  backend_.linear_backward(d_logits, weights_.head, d_z, Write::overwrite);
  if (layout_.head_q < 0) return;
  ConstView low_rank = low_rank_.first(z.rows);
  View d_low_rank = scratch(d_low_rank_, z.rows, layout_.options().head_rank);
  backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_logits,
                          layout_.matrix(layout_.head_q, p.values, p.slot_stride), d_low_rank, Write::overwrite);
  if (wanted) {
    backend_.grouped_outer(members, 1.0f, d_logits, low_rank, layout_.matrix(layout_.head_q, g.values, g.slot_stride),
                           g.write);
    backend_.grouped_outer(members, 1.0f, d_low_rank, z, layout_.matrix(layout_.head_p, g.values, g.slot_stride),
                           g.write);
  }
  backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_low_rank,
                          layout_.matrix(layout_.head_p, p.values, p.slot_stride), d_z, Write::accumulate);
}

void Heads::rewards(std::span<const MemberRows> members, const CohortParameters& p, ConstView pooled, View r) {
  backend_.grouped_matmul(members, Multiply::by_transpose, 1.0f, pooled,
                          layout_.matrix(layout_.reward_weight, p.values, p.slot_stride), r, Write::overwrite);
}

void Heads::rewards_backward(std::span<const MemberRows> members, const CohortParameters& p, const CohortGradients& g,
                             ConstView pooled, ConstView d_scaled, ConstView d_reward, View d_pooled) {
  if (g.wants(Group::reward)) {
    backend_.grouped_outer(members, 1.0f, d_scaled, pooled,
                           layout_.matrix(layout_.reward_weight, g.values, g.slot_stride), g.write);
    backend_.grouped_column_sum(members, d_reward, layout_.matrix(layout_.reward_bias, g.values, g.slot_stride),
                                g.write);
  }
  backend_.grouped_matmul(members, Multiply::by_matrix, 1.0f, d_scaled,
                          layout_.matrix(layout_.reward_weight, p.values, p.slot_stride), d_pooled, Write::overwrite);
}

}  // namespace fedpdpo
