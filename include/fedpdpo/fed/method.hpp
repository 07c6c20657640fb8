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

/// What a method may look at and change in a client's local training. Views are on the backend's device: over the
/// shared span (1, shared_size) or over all trainables (1, size).
struct LocalStep {
  Backend& backend;
  const ParameterLayout& layout;
  int client = 0;
  int round = 1;
  int step = 0;  ///< within the round; in finish_local the number of steps that trained what is shared
  double learning_rate_shared = 0;
  ConstView server;                                   ///< x over the shared span
  View values;                                        ///< y_i over all trainables
  View gradient;                                      ///< over all trainables; groups that are not trained hold garbage
  std::map<std::string, Tensor>& state;               ///< the method's own arrays of this client, kept and checkpointed
  const std::map<std::string, Tensor>& server_state;  ///< the group's ServerState::state

  /// An array of the client's state over the shared span, zeros where it is new.
  View client_array(const std::string& name) const;
  /// An array of the server's state over the shared span; a view without data where the server has none yet.
  ConstView server_array(const std::string& name) const;
  /// The shared part of a view over all trainables.
  View shared(View all) const { return all.columns(0, static_cast<std::int64_t>(layout.shared_size())); }
};

/// The server side of one aggregation group.
struct ServerState {
  std::vector<float> values;                        ///< x, (shared_size)
  std::map<std::string, std::vector<float>> state;  ///< the method's own arrays, kept and checkpointed
};

/// What the server rule is given.
struct ServerRound {
  const ParameterLayout& layout;
  int round = 1;
  int num_clients = 0;                                     ///< of the group
  int num_counted = 0;                                     ///< whose results were counted
  std::span<const float> average;                          ///< sum p_i y_i over the shared span
  const std::map<std::string, std::vector<float>>& means;  ///< of each payload, over the clients counted
};

/// Numbers that a client sends and receives in a round.
struct Traffic {
  std::size_t up = 0, down = 0;
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
  /// Called for every local step that trains something shared, after the gradient and before clipping.
  virtual void adjust_gradient(const LocalStep& step) const;
  /// Called for the same steps, after the optimizer's.
  virtual void adjust_step(const LocalStep& step) const;
  /// Called once a round for every client whose result is counted, after its last local step.
  virtual void finish_local(const LocalStep& step) const;
  /// Names of the client arrays (over the shared span) that travel beside y_i; the server rule gets their plain means.
  virtual std::vector<std::string> payloads() const { return {}; }
  /// The server rule. Default: x <- average.
  virtual void update_server(ServerState& server, const ServerRound& round) const;
  /// What travels in a round. Default: the shared span up and down, and every payload up.
  virtual Traffic traffic(const ParameterLayout& layout, int round) const;
  /// True where the `--refit` steps after the exchange train LoRA as well, not the private modules alone; the next round
  /// starts from the server's x all the same.
  virtual bool refits_everything() const { return false; }
};

}  // namespace fedpdpo
