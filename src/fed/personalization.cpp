// What the kinds of personalization have in common.
#include "fedpdpo/fed/personalization.hpp"

#include "methods/personalizations.hpp"

namespace fedpdpo {

void Personalization::adjust_gradient(const LocalStep&) const {}

void Personalization::adjust_step(const LocalStep&, Adapter) const {}

void Personalization::after_exchange(const LocalStep&) const {}

std::unique_ptr<Personalization> make_personalization(const PersonalizationOptions& options) {
  switch (options.kind) {
    case PersonalLora::none:
      return nullptr;
    case PersonalLora::ditto:
      return std::make_unique<Ditto>(options.prox);
    case PersonalLora::apfl:
      return std::make_unique<Apfl>(options.mix);
    case PersonalLora::feddpa:
      return std::make_unique<FedDpa>();
  }
  return nullptr;
}

Phase with_personal_lora(Phase phase) {
  phase.adapter = Adapter::personal;
  for (Group& group : phase.trainable) {
    if (group == Group::lora_a) group = Group::personal_a;
    if (group == Group::lora_b) group = Group::personal_b;
  }
  return phase;
}

std::vector<Phase> shared_then_personal(std::vector<Phase> phases) {
  const std::size_t scheduled = phases.size();
  for (std::size_t i = 0; i < scheduled; ++i) phases.push_back(with_personal_lora(phases[i]));
  return phases;
}

}  // namespace fedpdpo
