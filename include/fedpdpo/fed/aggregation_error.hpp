// What averaging LoRA's factors apart leaves out of the average of their products:
//
//   E = sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i) = sum p_i (B_i - B)(A_i - A),   B = sum p_i B_i, A = sum p_i A_i
//
// per LoRA site; a layer's error is the Frobenius norm over its sites. With U = [sqrt(p_i) (B_i - B)] and
// V = [sqrt(p_i) (A_i - A)] stacked over the clients, ||U V||^2 = sum of (U^T U) * (V V^T), elementwise: no matrix of
// the weight's size is ever formed.
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/fed/aggregator.hpp"

namespace fedpdpo {

/// ||E||_F per layer of the model. `average` is the shared span's average; both LoRA groups are shared.
std::vector<double> lora_aggregation_error(const ParameterLayout& layout, std::int64_t num_layers,
                                           std::span<const WeightedLora> clients, std::span<const float> average);

/// A counted contribution, on another rank.
struct GatheredLora {
  int client = 0;
  double share = 0;  ///< of the average
  float weight = 1;  ///< Contribution::lora_weight
  std::vector<float> values;
};

/// Views of them.
std::vector<WeightedLora> weighted(std::span<const GatheredLora> loras);

/// Collective over the group: the counted contributions of all its ranks in the order of the clients, on every rank (on
/// rank 0 alone with `to_all` false).
std::vector<GatheredLora> gather_loras(const AggregationGroup& group, std::span<const Contribution> own,
                                       std::size_t size, bool to_all = true);

/// Collective over the group: gathers the counted contributions on its rank 0, where the errors are returned (empty
/// elsewhere).
std::vector<double> gather_aggregation_error(const AggregationGroup& group, const ParameterLayout& layout,
                                             std::int64_t num_layers, std::span<const Contribution> own,
                                             std::span<const float> average);

}  // namespace fedpdpo
