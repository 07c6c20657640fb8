// FedAvg (McMahan et al. 2017, arXiv 1602.05629) on LoRA: federated DPO.
//   shared: A, B    local: K steps of the loss from x    server: x <- sum p_i y_i
// The same exchange with other modules (registry.cpp), h the LLM head, b the bottleneck adapter, w the reward head:
//   FedPer (Arivazhagan et al. 2019, arXiv 1912.00818)    private: h    local: K steps on A, B, h
//   FedRep (Collins et al. 2021, arXiv 2102.07078)        private: h    local: K q steps on h, then K (1 - q) on A, B
//   FedPDPO (Zhu et al. 2026, arXiv 2603.19741)           private: h, b, w    local: K steps on all of them with the
//     loss of implicit and explicit margins; --schedule alternate: K q steps on h, b, w, then K (1 - q) on A, B
// with q the --private-share.
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> FedAvg::shared_groups() const { return {Group::lora_a, Group::lora_b}; }

}  // namespace fedpdpo
