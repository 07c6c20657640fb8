// Private modules alone: LoRA stays at its start, the bottleneck, LLM head and reward head are trained.
//   shared: -    local: K steps of the private modules    server: -
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> PrivateOnly::shared_groups() const { return {}; }

std::vector<Phase> PrivateOnly::plan_round(int, std::vector<Phase> scheduled) const {
  return without_group(without_group(std::move(scheduled), Group::lora_a), Group::lora_b);
}

}  // namespace fedpdpo
