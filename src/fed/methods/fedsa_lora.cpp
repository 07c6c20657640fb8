// FedSA-LoRA (Guo et al. 2025, arXiv 2410.01463): A carries what is general, B what is the client's own.
//   shared: A    local: K steps of the loss on A and B    server: x <- sum p_i y_i over A; B stays with its client
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> FedSaLora::shared_groups() const { return {Group::lora_a}; }

}  // namespace fedpdpo
