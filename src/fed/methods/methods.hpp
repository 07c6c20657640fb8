// The methods' classes. Those that change one thing of FedAvg derive from it.
#pragma once

#include "fedpdpo/fed/method.hpp"

namespace fedpdpo {

class FedAvg : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override;
};

class Local : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override;
};

class PrivateOnly : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override;
  std::vector<Phase> plan_round(int round, std::vector<Phase> scheduled) const override;
};

class Centralized : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override;
  DataScope data_scope() const override;
};

class FedProx : public FedAvg {
 public:
  explicit FedProx(double prox_mu) : prox_mu_(prox_mu) {}
  void adjust_gradient(const LocalStep& step) const override;

 private:
  double prox_mu_;
};

}  // namespace fedpdpo
