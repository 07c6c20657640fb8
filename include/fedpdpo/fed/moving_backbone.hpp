// A backbone that a method adds to: W = W0 + R at the LoRA sites, R a residual by site, kept by the server of an
// aggregation group. W is a copy of its own in fp32, made anew from W0 and R at every change, so that a resumed run has
// the same bits; W0 stays as it is.
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

/// Elements of the residual: the weights of all LoRA sites, by layer, block and site, each (outputs, inputs) row-major.
std::size_t residual_size(const ParameterLayout& layout, const ModelConfig& config);

/// residual += scale sum_i share_i weight_i B_i A_i at every site, summed in double in the order of the clients.
void add_products(const ParameterLayout& layout, std::span<const WeightedLora> clients, double scale,
                  std::span<float> residual);

class MovedBackbone {
 public:
  /// A copy of `start`, which outlives it. Matrices become fp32.
  MovedBackbone(Backend& backend, const ModelConfig& config, const Weights& start);

  /// W <- W0 + residual.
  void move(const ParameterLayout& layout, std::span<const float> residual);
  const Weights& weights() const { return weights_; }

 private:
  Backend& backend_;
  const ModelConfig& config_;
  const Weights& start_;
  Tensor memory_;
  Weights weights_;
};

}  // namespace fedpdpo
