// TrainedModel: one model's trained modules beside the frozen backbone, whoever trained them: what is exported,
// evaluated and merged. There is one LoRA: a second, personal one has become it or is not part of the model.
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/model/layout.hpp"

namespace fedpdpo {

struct TrainedModel {
  AdapterOptions options;       ///< personal_lora is none
  std::vector<float> values{};  ///< over layout(): every group, none of them shared
  /// What was added to the backbone's weights at the LoRA sites, as moving_backbone.hpp orders it; empty: nothing.
  std::vector<float> residual{};

  ParameterLayout layout(const ModelConfig& config) const { return {config, options, {}}; }
};

/// The parameter's part of values over a layout.
template <class T>
std::span<const float> part_of(const T& values, const Parameter& parameter) {
  return std::span<const float>(values).subspan(parameter.offset, parameter.size());
}
inline std::span<float> part_to_write(std::span<float> values, const Parameter& parameter) {
  return values.subspan(parameter.offset, parameter.size());
}

}  // namespace fedpdpo
