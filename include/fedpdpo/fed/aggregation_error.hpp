// What averaging LoRA's factors apart leaves out of the average of their products:
//
//   E = sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i) = sum p_i (B_i - B)(A_i - A),   B = sum p_i B_i, A = sum p_i A_i
//
// per LoRA site; a layer's error is the Frobenius norm over its sites. With the clients' p_i (B_i - B) side by side and
// their A_i - A one below another, a site's E is one product, of which a few rows at a time are stored; deviations are
// taken in double. Source: the definition; FedEx-LoRA (Singhal et al. 2024) adds E to the frozen weights.
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/fed/aggregator.hpp"

namespace fedpdpo {

/// The factors A, B of a layer's sites, of all that a client shares, one after another.
std::vector<float> layer_slice(const ParameterLayout& layout, int layer, std::span<const float> shared);

/// ||E||_F of a layer. The clients' values and their average are layer_slices; both LoRA groups are shared. Products
/// are the backend's, in fp32 (TF32 where it computes clients' products so).
double lora_aggregation_error(Backend& backend, const ParameterLayout& layout, int layer,
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

/// Collective over the group: the counted contributions of all its ranks in the order of the clients, on every rank.
std::vector<GatheredLora> gather_loras(const AggregationGroup& group, std::span<const Contribution> own,
                                       std::size_t size);

/// Collective over the group, whose ranks share the layers: ||E||_F per layer of the model on its rank 0 (empty
/// elsewhere). The numbers do not depend on the ranks. `average` is the shared span's average.
std::vector<double> gather_aggregation_error(Backend& backend, const AggregationGroup& group,
                                             const ParameterLayout& layout, int num_layers,
                                             std::span<const Contribution> own, std::span<const float> average);

}  // namespace fedpdpo
