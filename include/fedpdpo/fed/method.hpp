// FederatedMethod: what a federated method decides. A method is a composition: which parameter groups travel, how the
// local step is changed, and what the server does with the clients' results. The round loop belongs to none of them.
//
// Symbols: x the group's server state over the shared span, y_i a client's result, p_i = n_i / sum n over the clients
// sampled, K local steps, lr the learning rate.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/model/layout.hpp"
#include "fedpdpo/train/local_trainer.hpp"

namespace fedpdpo {

/// What a method may look at and change in a client's local step. Views are on the backend's device: over the shared
/// span (1, shared_size) or over all trainables (1, size).
struct LocalStep {
  Backend& backend;
  const ParameterLayout& layout;
  int client = 0;
  int round = 1;
  int step = 0;  ///< within the round
  double learning_rate_shared = 0;
  ConstView server;                      ///< x over the shared span
  ConstView values;                      ///< y_i over all trainables
  View gradient;                         ///< over all trainables; groups that are not trained hold garbage
  std::map<std::string, Tensor>& state;  ///< the method's own arrays of this client, kept and checkpointed
};

/// The server side of one aggregation group.
struct ServerState {
  std::vector<float> values;                        ///< x, (shared_size)
  std::map<std::string, std::vector<float>> state;  ///< the method's own arrays, kept and checkpointed
};

/// Whose train pairs a trained client uses.
enum class DataScope : std::uint8_t { own, pooled };

class FederatedMethod {
 public:
  virtual ~FederatedMethod() = default;

  /// The groups that travel, in the order in which they lie in the flat buffer. Groups that the run's options leave out
  /// of the model are skipped.
  virtual std::vector<Group> shared_groups() const = 0;
  /// pooled: one client trains on the union of all train pairs and its model is everybody's (centralized).
  virtual DataScope data_scope() const { return DataScope::own; }
  /// The phases of a client's local training in a round (1-based), given what the schedule option asks for.
  virtual std::vector<Phase> plan_round(int round, std::vector<Phase> scheduled) const;
  /// Called for every local step, after the gradient and before clipping.
  virtual void adjust_gradient(const LocalStep& step) const;
  /// The server rule: `average` = sum p_i y_i over the shared span. Default: x <- average.
  virtual void update_server(ServerState& server, std::span<const float> average) const;
};

}  // namespace fedpdpo
