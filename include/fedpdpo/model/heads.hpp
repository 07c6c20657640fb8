// The private modules behind the backbone: bottleneck adapter, LLM head and reward head (design 2), each with its
// backward pass. Members cut the rows that a function is given.
#pragma once

#include <span>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "fedpdpo/model/layout.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

class Heads {
 public:
  Heads(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout);

  /// z (T, d) of h (T, d); h itself where there is no bottleneck. Valid until the next call.
  ConstView bottleneck(std::span<const MemberRows> members, const CohortParameters& p, ConstView h);
  /// After bottleneck() of the same h: the gradients of the module, where wanted, and d_h (overwritten) where given;
  /// d_h may be d_z itself.
  void bottleneck_backward(std::span<const MemberRows> members, const CohortParameters& p, const CohortGradients& g,
                           ConstView h, ConstView d_z, View* d_h);

  /// logits (R, V) of z (R, d).
  void logits(std::span<const MemberRows> members, const CohortParameters& p, ConstView z, View logits);
  /// True where d_logits had better be bf16: beside bf16 weights the frozen head's product would round them to it, and
  /// those of a low-rank head take the matrix units. (Those of a vocabulary that is no multiple of 8 stay f32 with a
  /// low-rank head.)
  bool takes_half_gradients() const;
  /// d_z (R, d) overwritten.
  void logits_backward(std::span<const MemberRows> members, const CohortParameters& p, const CohortGradients& g,
                       ConstView z, ConstView d_logits, View d_z);

  /// r (S, 1) = w . pooled (S, d), without the bias.
  void rewards(std::span<const MemberRows> members, const CohortParameters& p, ConstView pooled, View r);
  /// d_scaled (S, 1) is the gradient of `r`, d_reward (S, 1) that of the whole reward (they differ by the mean's
  /// divisor); d_pooled (S, d) overwritten.
  void rewards_backward(std::span<const MemberRows> members, const CohortParameters& p, const CohortGradients& g,
                        ConstView pooled, ConstView d_scaled, ConstView d_reward, View d_pooled);

 private:
  View scratch(Tensor& tensor, std::int64_t rows, std::int64_t cols);

  Backend& backend_;
  const ModelConfig& config_;
  const Weights& weights_;
  const ParameterLayout& layout_;
  Tensor inner_, inner_active_, d_inner_;    // (T, m)
  Tensor outer_, d_outer_, z_, d_h_unused_;  // (T, d)
  Tensor d_gate_unused_;
  Tensor low_rank_, d_low_rank_;  // (R, r_h)
};

}  // namespace fedpdpo
