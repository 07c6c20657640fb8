// FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): A frozen at the common start, so that averaging B is averaging B A.
//   shared: B    local: K steps of the loss on B from x    server: x <- sum p_i y_i
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> FfaLora::shared_groups() const { return {Group::lora_b}; }

std::vector<Phase> FfaLora::plan_round(int, std::vector<Phase> scheduled) const {
  return without_group(std::move(scheduled), Group::lora_a);
}

}  // namespace fedpdpo
