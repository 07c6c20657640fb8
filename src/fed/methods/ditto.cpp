// Ditto (Li et al. 2021, arXiv 2012.04221): a personal LoRA beside the shared one, drawn towards what the server sent.
//   shared: as the method (A, B)    local: K steps of the loss on y; then K steps on v with
//   g <- g + prox (v - x), the gradient of prox/2 ||v - x||^2    server: as the method    the client's model: v
#include "personalizations.hpp"

namespace fedpdpo {

std::vector<Phase> Ditto::plan_round(std::vector<Phase> phases) const {
  return shared_then_personal(std::move(phases));
}

void Ditto::adjust_gradient(const LocalStep& step) const {
  if (prox_ == 0) return;
  const auto prox = static_cast<float>(prox_);
  const auto part = [](auto view, ParameterRange range) {
    return view.columns(static_cast<std::int64_t>(range.begin), static_cast<std::int64_t>(range.end));
  };
  for (const auto& [common, own] : {std::pair{Group::lora_a, Group::personal_a}, {Group::lora_b, Group::personal_b}}) {
    if (!step.layout.is_shared(common)) continue;
    View gradient = part(step.gradient, step.layout.range(own));
    step.backend.axpy(prox, part(step.values, step.layout.range(own)), gradient, Write::accumulate);
    step.backend.axpy(-prox, part(step.server, step.layout.range(common)), gradient, Write::accumulate);
  }
}

}  // namespace fedpdpo
