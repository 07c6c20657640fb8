// FedDPA (Yang et al. 2024, arXiv 2403.19211, the iterative FedDPA-T): a global and a local LoRA, each trained on its
// own; an instance's answer weighs their outputs by its likeness to the client's data.
//   shared: as the method (A, B)    local: K steps of the loss on y; then K steps on v    server: as the method
//   the client's model: W0 u + (1 - w) s B_y A_y u + w s B_v A_v u, w = mean cosine of the instance's embedding with
//   those of a sample of the client's train pairs, cut to [0, 1]
// An embedding is the mean of the bare backbone's final hidden states over both responses and the prompt (the paper
// takes the prompt's last token; here prompts may be empty, and chosen and rejected must count alike).
#include <algorithm>
#include <cmath>

#include "personalizations.hpp"

namespace fedpdpo {

std::vector<Phase> FedDpa::plan_round(std::vector<Phase> phases) const {
  return shared_then_personal(std::move(phases));
}

std::vector<float> instance_weights(std::span<const float> embeddings, std::span<const float> samples, std::size_t d) {
  const auto normalized = [d](std::span<const float> rows) {
    std::vector<double> unit(rows.begin(), rows.end());
    for (std::size_t at = 0; at < unit.size(); at += d) {
      double squared = 0;
      for (std::size_t j = 0; j < d; ++j) squared += unit[at + j] * unit[at + j];
      for (std::size_t j = 0; j < d; ++j) unit[at + j] /= std::max(std::sqrt(squared), 1e-30);
    }
    return unit;
  };
  // The mean of the cosines is the product with the mean of the unit vectors.
  const std::vector<double> units = normalized(samples);
  std::vector<double> mean(d, 0.0);
  for (std::size_t i = 0; i < units.size(); ++i) mean[i % d] += units[i];
  for (double& x : mean) x /= static_cast<double>(std::max<std::size_t>(1, units.size() / d));
  const std::vector<double> rows = normalized(embeddings);
  std::vector<float> weights;
  for (std::size_t at = 0; at < rows.size(); at += d) {
    double cosine = 0;
    for (std::size_t j = 0; j < d; ++j) cosine += rows[at + j] * mean[j];
    weights.push_back(static_cast<float>(std::clamp(cosine, 0.0, 1.0)));
  }
  return weights;
}

}  // namespace fedpdpo
