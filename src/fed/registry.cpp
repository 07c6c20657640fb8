// The registry of methods: one entry each.
#include "fedpdpo/fed/registry.hpp"

#include "methods/methods.hpp"

namespace fedpdpo {
namespace {

/// LoRA alone: the pretrained head, no bottleneck, no reward head.
void plain_modules(RunOptions&) {}

/// FedPDPO's private modules (design 2).
void personal_modules(RunOptions& o) {
  o.adapter.head = HeadKind::full;
  o.adapter.bottleneck = 16;
  o.adapter.reward_head = true;
}

/// LoRA with the LLM head private: FedPer's personalization layer.
void personal_head(RunOptions& o) { o.adapter.head = HeadKind::full; }

template <class Method>
std::unique_ptr<FederatedMethod> make(const RunOptions&) {
  return std::make_unique<Method>();
}

}  // namespace

const std::vector<MethodInfo>& methods() {
  static const std::vector<MethodInfo> all{
      {"local", "no exchange: every client trains its own LoRA", "-", plain_modules, make<Local>},
      {"local-pdpo", "no exchange, with all of FedPDPO's private modules", "-", personal_modules, make<Local>},
      {"private-only", "LoRA frozen at its start, private modules trained, nothing travels", "-", personal_modules,
       make<PrivateOnly>},
      {"centralized", "one model on the pooled pairs", "-", plain_modules, make<Centralized>},
      {"fedavg", "LoRA averaged (federated DPO)", "McMahan et al. 2017, arXiv 1602.05629", plain_modules, make<FedAvg>},
      {"fedper", "LoRA averaged, LLM head private", "Arivazhagan et al. 2019, arXiv 1912.00818", personal_head,
       make<FedAvg>},
      {"fedprox", "fedavg with a proximal term", "Li et al. 2020, arXiv 1812.06127", plain_modules,
       [](const RunOptions& o) -> std::unique_ptr<FederatedMethod> { return std::make_unique<FedProx>(o.prox_mu); }},
      // FedPDPO is FedAvg of LoRA with private LLM head, bottleneck and reward head: modules, not another exchange.
      {"fedpdpo", "LoRA averaged; LLM head, reward head and bottleneck private", "Zhu et al. 2026, arXiv 2603.19741",
       personal_modules, make<FedAvg>},
  };
  return all;
}

const MethodInfo* find_method(std::string_view name) {
  for (const MethodInfo& method : methods())
    if (method.name == name) return &method;
  return nullptr;
}

}  // namespace fedpdpo
