// The kinds of personalization.
#pragma once

#include "fedpdpo/fed/personalization.hpp"

namespace fedpdpo {

class Ditto : public Personalization {
 public:
  explicit Ditto(double prox) : prox_(prox) {}
  std::vector<Phase> plan_round(std::vector<Phase> phases) const override;
  void adjust_gradient(const LocalStep& step) const override;

 private:
  double prox_;
};

class Apfl : public Personalization {
 public:
  explicit Apfl(double mix) : mix_(mix) {}
  std::vector<Phase> plan_round(std::vector<Phase> phases) const override;
  void adjust_gradient(const LocalStep& step) const override;
  void adjust_step(const LocalStep& step, Adapter adapter) const override;
  void after_exchange(const LocalStep& step) const override;
  bool acts_after_exchange() const override { return true; }
  std::size_t client_state_size(const ParameterLayout& layout) const override;
  /// The personal LoRA's share.
  double share(const LocalStep& step) const;

 private:
  void mix(const LocalStep& step) const;

  double mix_;
};

class FedDpa : public Personalization {
 public:
  std::vector<Phase> plan_round(std::vector<Phase> phases) const override;
  bool weighs_instances() const override { return true; }
};

}  // namespace fedpdpo
