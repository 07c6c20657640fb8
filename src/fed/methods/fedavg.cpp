// FedAvg (McMahan et al. 2017, arXiv 1602.05629) on LoRA: federated DPO.
//   shared: A, B    local: K steps of the loss from x    server: x <- sum p_i y_i
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> FedAvg::shared_groups() const { return {Group::lora_a, Group::lora_b}; }

}  // namespace fedpdpo
