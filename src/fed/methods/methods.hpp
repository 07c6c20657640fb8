// The methods' classes. Those that change one thing of FedAvg derive from it.
#pragma once

#include "fedpdpo/fed/method.hpp"

namespace fedpdpo {

/// The phases without a group, and without those that trained nothing else.
std::vector<Phase> without_group(std::vector<Phase> phases, Group group);

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
  Traffic traffic(const TrafficRound& round) const override;
};

class FedProx : public FedAvg {
 public:
  explicit FedProx(double prox_mu) : prox_mu_(prox_mu) {}
  void adjust_gradient(const LocalStep& step) const override;

 private:
  double prox_mu_;
};

class Scaffold : public FedAvg {
 public:
  void adjust_step(const LocalStep& step) const override;
  void finish_local(const LocalStep& step) const override;
  std::vector<std::string> payloads() const override { return {"control_change"}; }
  std::size_t client_state_size(const ParameterLayout& layout) const override { return 2 * layout.shared_size(); }
  void update_server(ServerState& server, const ServerRound& round) const override;
  Traffic traffic(const TrafficRound& round) const override;
};

class FedAvgM : public FedAvg {
 public:
  FedAvgM(double server_lr, double momentum) : server_lr_(server_lr), momentum_(momentum) {}
  void update_server(ServerState& server, const ServerRound& round) const override;

 private:
  double server_lr_, momentum_;
};

class FedOpt : public FedAvg {
 public:
  enum class Rule : std::uint8_t { adagrad, yogi, adam };
  struct Options {
    double rate, momentum, beta2, tau;
  };
  FedOpt(Rule rule, const Options& options) : rule_(rule), options_(options) {}
  void update_server(ServerState& server, const ServerRound& round) const override;

 private:
  Rule rule_;
  Options options_;
};

class FfaLora : public FedAvg {
 public:
  std::vector<Group> shared_groups() const override;
  std::vector<Phase> plan_round(int round, std::vector<Phase> scheduled) const override;
};

class FedSaLora : public FedAvg {
 public:
  std::vector<Group> shared_groups() const override;
};

class RoLora : public FedAvg {
 public:
  std::vector<Phase> plan_round(int round, std::vector<Phase> scheduled) const override;
  void update_server(ServerState& server, const ServerRound& round) const override;
  Traffic traffic(const TrafficRound& round) const override;
  std::string refuses(Feature feature) const override;
};

class FedExLora : public FedAvg {
 public:
  bool moves_backbone() const override { return true; }
  void move_backbone(ServerState& server, const ServerRound& round,
                     std::span<const WeightedLora> clients) const override;
  Traffic traffic(const TrafficRound& round) const override;
};

class FLoRa : public FedAvg {
 public:
  void update_server(ServerState& server, const ServerRound& round) const override;
  bool moves_backbone() const override { return true; }
  void move_backbone(ServerState& server, const ServerRound& round,
                     std::span<const WeightedLora> clients) const override;
  std::vector<Group> restarted_groups() const override;
  std::string refuses(Feature feature) const override;
  Traffic traffic(const TrafficRound& round) const override;
};

class FedConcord : public FedAvg {
 public:
  std::vector<Group> common_groups() const override;
};

class FedAvgFt : public FedAvg {
 public:
  bool refits_everything() const override;
};

}  // namespace fedpdpo
