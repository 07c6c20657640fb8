// Personalization: a second LoRA that is the client's own, as a module that goes with any method that shares LoRA. It
// adds phases to the local training, sees every local step, and says which model is the client's.
//
// Symbols: y the client's copy of the shared LoRA, x the group's server state, v the personal LoRA, lr the private
// rate.
#pragma once

#include <memory>
#include <vector>

#include "fedpdpo/fed/method.hpp"

namespace fedpdpo {

struct PersonalizationOptions {
  PersonalLora kind = PersonalLora::none;
  double prox = 0.1;     ///< ditto: weight of the pull towards x
  double mix = 0.5;      ///< apfl: the personal LoRA's share at the start
  int num_samples = 32;  ///< feddpa: train pairs that stand for a client's data
};

class Personalization {
 public:
  virtual ~Personalization() = default;

  /// The phases of a round, given those of the method (all with the shared adapter).
  virtual std::vector<Phase> plan_round(std::vector<Phase> phases) const = 0;
  /// In steps of phases with the personal adapter, after the gradient and before clipping.
  virtual void adjust_gradient(const LocalStep& step) const;
  /// After every optimizer step; `adapter` is the phase's.
  virtual void adjust_step(const LocalStep& step, Adapter adapter) const;
  /// After the exchange, when y has become x; for every client, where acts_after_exchange().
  virtual void after_exchange(const LocalStep& step) const;
  /// True where after_exchange does anything: it brings every client's values to the device.
  virtual bool acts_after_exchange() const { return false; }
  /// As FederatedMethod::client_state_size.
  virtual std::size_t client_state_size(const ParameterLayout&) const { return 0; }
  /// True where both adapters count in an evaluation, by an instance's likeness to the client's data.
  virtual bool weighs_instances() const { return false; }
};

/// nullptr for PersonalLora::none.
std::unique_ptr<Personalization> make_personalization(const PersonalizationOptions& options);

/// The scheduled phases, then the same with the personal LoRA in the shared one's place; private modules are trained in
/// both.
std::vector<Phase> shared_then_personal(std::vector<Phase> phases);
/// A phase's groups with the personal LoRA in the shared one's place, its phases without LoRA unchanged.
Phase with_personal_lora(Phase phase);

/// Mean cosine of each pair's embedding with those of the samples, cut to [0, 1]; (n, d) and (samples, d), row-major.
std::vector<float> instance_weights(std::span<const float> embeddings, std::span<const float> samples, std::size_t d);

}  // namespace fedpdpo
