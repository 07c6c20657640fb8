// Private modules alone: LoRA stays at its start, the bottleneck, LLM head and reward head are trained.
//   shared: -    local: K steps of the private modules    server: -
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> PrivateOnly::shared_groups() const { return {}; }

std::vector<Phase> PrivateOnly::plan_round(int, std::vector<Phase> scheduled) const {
  for (Phase& phase : scheduled)
    std::erase_if(phase.trainable, [](Group g) { return g == Group::lora_a || g == Group::lora_b; });
  std::erase_if(scheduled, [](const Phase& phase) { return phase.trainable.empty(); });
  return scheduled;
}

}  // namespace fedpdpo
