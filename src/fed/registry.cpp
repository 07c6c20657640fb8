// The registry of methods: one entry each.
#include "fedpdpo/fed/registry.hpp"

#include "fedpdpo/core/error.hpp"
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

/// FedRep trains the head first, then the body.
void head_then_body(RunOptions& o) {
  o.adapter.head = HeadKind::full;
  o.schedule = LocalSchedule::alternate;
}

void fine_tuning(RunOptions& o) { o.refit = 4; }

/// What the adaptive server optimizers' paper uses, scaled to LoRA's updates.
void adaptive_server(RunOptions& o) { o.server_lr = 0.01; }

/// LoRA with the LLM head private: FedPer's personalization layer.
void personal_head(RunOptions& o) { o.adapter.head = HeadKind::full; }

/// LoRA beside a LoRA of the client's own.
template <PersonalLora kind>
void personal_lora(RunOptions& o) {
  o.adapter.personal_lora = kind;
}

/// Private modules as FedPDPO's, groups as the clients' agreement has them.
void concord(RunOptions& o) {
  personal_modules(o);
  o.groups = GroupKind::agreement;
}

template <class Method>
std::unique_ptr<FederatedMethod> make(const RunOptions&) {
  return std::make_unique<Method>();
}

template <FedOpt::Rule rule>
std::unique_ptr<FederatedMethod> make_fedopt(const RunOptions& o) {
  return std::make_unique<FedOpt>(rule, FedOpt::Options{o.server_lr, o.server_momentum, o.server_beta2, o.server_tau});
}

std::vector<MethodInfo>& table() {
  static std::vector<MethodInfo> all{
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
      {"fedavg-ft", "LoRA averaged, then fine-tuned by each client before evaluation (--refit)",
       "Yu et al. 2020, arXiv 2002.04758", fine_tuning, make<FedAvgFt>},
      {"fedrep", "LoRA averaged, LLM head private and trained first", "Collins et al. 2021, arXiv 2102.07078",
       head_then_body, make<FedAvg>},
      {"scaffold", "fedavg with control variates against client drift", "Karimireddy et al. 2020, arXiv 1910.06378",
       plain_modules, make<Scaffold>},
      {"fedavgm", "fedavg with server momentum", "Hsu et al. 2019, arXiv 1909.06335", plain_modules,
       [](const RunOptions& o) -> std::unique_ptr<FederatedMethod> {
         return std::make_unique<FedAvgM>(o.server_lr, o.server_momentum);
       }},
      {"fedadagrad", "fedavg with Adagrad on the server", "Reddi et al. 2021, arXiv 2003.00295", adaptive_server,
       make_fedopt<FedOpt::Rule::adagrad>},
      {"fedyogi", "fedavg with Yogi on the server", "Reddi et al. 2021, arXiv 2003.00295", adaptive_server,
       make_fedopt<FedOpt::Rule::yogi>},
      {"fedadam", "fedavg with Adam on the server", "Reddi et al. 2021, arXiv 2003.00295", adaptive_server,
       make_fedopt<FedOpt::Rule::adam>},
      {"ffa-lora", "LoRA with A frozen, B averaged: exact", "Sun et al. 2024, arXiv 2403.12313", plain_modules,
       make<FfaLora>},
      {"fedsa-lora", "LoRA with A averaged, B private", "Guo et al. 2025, arXiv 2410.01463", plain_modules,
       make<FedSaLora>},
      {"rolora", "LoRA with B and A trained and averaged in turn", "Chen et al. 2024, arXiv 2409.02346", plain_modules,
       make<RoLora>},
      {"fedex-lora", "LoRA averaged, what that leaves out added to the frozen weights: exact",
       "Singhal et al. 2025, arXiv 2410.09432", plain_modules, make<FedExLora>},
      {"flora", "fresh LoRA each round, stacked and added to the frozen weights: exact, also for --lora-ranks",
       "Wang et al. 2024, arXiv 2409.05976", plain_modules, make<FLoRa>},
      {"ditto", "LoRA averaged; a personal LoRA drawn towards it (--personal-lora ditto)",
       "Li et al. 2021, arXiv 2012.04221", personal_lora<PersonalLora::ditto>, make<FedAvg>},
      {"apfl", "LoRA averaged; a personal LoRA mixed with it, the share learned (--personal-lora apfl)",
       "Deng et al. 2020, arXiv 2003.13461", personal_lora<PersonalLora::apfl>, make<FedAvg>},
      {"feddpa", "LoRA averaged; a personal LoRA weighted with it by instance (--personal-lora feddpa)",
       "Yang et al. 2024, arXiv 2403.19211", personal_lora<PersonalLora::feddpa>, make<FedAvg>},
      // FedPDPO is FedAvg of LoRA with private LLM head, bottleneck and reward head: modules, not another exchange.
      {"fedpdpo", "LoRA averaged; LLM head, reward head and bottleneck private", "Zhu et al. 2026, arXiv 2603.19741",
       personal_modules, make<FedAvg>},
      {"fedconcord", "fedpdpo with LoRA averaged among the clients whose updates agree", "this program", concord,
       make<FedConcord>},
  };
  return all;
}

}  // namespace

const std::vector<MethodInfo>& methods() { return table(); }

void register_method(MethodInfo method) {
  check(find_method(method.name) == nullptr, "a method of this name is registered");
  table().push_back(std::move(method));
}

const MethodInfo* find_method(std::string_view name) {
  for (const MethodInfo& method : methods())
    if (method.name == name) return &method;
  return nullptr;
}

}  // namespace fedpdpo
