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
  for (const auto& [common, own] : {std::pair{Group::lora_a, Group::personal_a}, {Group::lora_b, Group::personal_b}}) {
    if (!step.layout.is_shared(common)) continue;
    View gradient = step.layout.part(step.gradient, own);
    step.backend.axpy(prox, step.layout.part(step.values, own), gradient, Write::accumulate);
    step.backend.axpy(-prox, step.layout.part(step.server, common), gradient, Write::accumulate);
  }
}

}  // namespace fedpdpo
