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
  double learning_rate_private = 0;
  ConstView server;                                   ///< x over the shared span
  View values;                                        ///< y_i over all trainables
  View gradient;                                      ///< over all trainables; groups that are not trained hold garbage
  std::map<std::string, Tensor>& state;               ///< the method's own arrays of this client, kept and checkpointed
  const std::map<std::string, Tensor>& server_state;  ///< the group's ServerState::state
  std::span<const Group> trained = {};                ///< the groups that this step trains; empty outside of steps

  bool trains(Group group) const;
  /// An array of the client's state over the shared span, zeros where it is new.
  View client_array(const std::string& name) const;
  /// An array of the server's state over the shared span; a view without data where the server has none yet.
  ConstView server_array(const std::string& name) const;
  /// The same over the given number of elements.
  View client_array(const std::string& name, std::int64_t size) const;
  /// The shared part of a view over all trainables.
  View shared(View all) const { return all.columns(0, static_cast<std::int64_t>(layout.shared_size())); }
};

/// The server side of one aggregation group.
struct ServerState {
  std::vector<float> values;                        ///< x, (shared_size)
  std::map<std::string, std::vector<float>> state;  ///< the method's own arrays, kept and checkpointed
  std::vector<float> residual;  ///< what has been added to W0, as residual_size() counts it; may be empty
};

/// One client's LoRA over the shared span, and its share of the average.
struct WeightedLora {
  std::span<const float> values;
  double share = 0;
  float weight = 1;  ///< its LoRA's scale over the layout's
};

/// What the server rule is given.
struct ServerRound {
  const ParameterLayout& layout;
  int round = 1;
  std::uint64_t seed = 0;
  int num_clients = 0;                                     ///< of the group
  int num_counted = 0;                                     ///< whose results were counted
  std::span<const float> average;                          ///< sum p_i y_i over the shared span
  const std::map<std::string, std::vector<float>>& means;  ///< of each payload, over the clients counted
};

/// What travels in a round, for one client.
struct TrafficRound {
  const ParameterLayout& layout;
  int round = 1;
  int num_participants = 1;  ///< of the group
  double rank_share = 1;     ///< the client's LoRA rank over the layout's
  double rank_shares = 1;    ///< sum over the participants
  std::size_t residual = 0;  ///< elements of the LoRA sites' weights
};

/// Numbers that a client sends and receives in a round.
struct Traffic {
  std::size_t up = 0, down = 0;

  /// Of `up`, where the shared span (of `shared_size` numbers) is sent in `compressed` bytes. What is compressed is
  /// y_i; payloads beside it travel as they are.
  double bytes_up(std::size_t shared_size, std::size_t compressed) const;
};

/// Options that not every method goes with.
enum class Feature : std::uint8_t {
  groups,         ///< --groups other than all
  found_groups,   ///< groups that change from round to round (agreement)
  personal_lora,  ///< --personal-lora
  lora_ranks,     ///< --lora-ranks
  privacy,        ///< --dp-clip
  compression,    ///< --compress
  new_clients,    ///< --new-clients
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
  /// Called once a round for every client whose result is counted, after its last local step, where finishes_local().
  virtual void finish_local(const LocalStep& step) const;
  /// True where finish_local does anything: it brings every such client's values to the device. Default: where there
  /// are payloads.
  virtual bool finishes_local() const { return !payloads().empty(); }
  /// Names of the client arrays (over the shared span) that travel beside y_i; the server rule gets their plain means.
  virtual std::vector<std::string> payloads() const { return {}; }
  /// Numbers in the arrays of a client's state (LocalStep::client_array), for the prediction of memory.
  virtual std::size_t client_state_size(const ParameterLayout& layout) const;
  /// The server rule. Default: x <- average.
  virtual void update_server(ServerState& server, const ServerRound& round) const;
  /// What travels in a round. Default: the shared span up and down, and every payload up.
  virtual Traffic traffic(const TrafficRound& round) const;
  /// True where the server adds to the frozen weights: the group's clients then train on W0 + residual. W0 itself, and
  /// with it the reference, stays.
  virtual bool moves_backbone() const { return false; }
  /// After update_server, on every rank of the group: the LoRA of every client counted, in the order of the clients.
  virtual void move_backbone(ServerState& server, const ServerRound& round,
                             std::span<const WeightedLora> clients) const;
  /// Groups that start anew in every round: their optimizer's moments do too.
  virtual std::vector<Group> restarted_groups() const { return {}; }
  /// Shared groups, the first in shared_groups(), that are averaged over the clients of all aggregation groups.
  virtual std::vector<Group> common_groups() const { return {}; }
  /// True where the `--refit` steps after the exchange train LoRA as well, not the private modules alone; the next
  /// round starts from the server's x all the same.
  virtual bool refits_everything() const { return false; }
  /// Empty, or why the method does not go with a feature (the end of a sentence). Default: what follows from the above;
  /// --lora-ranks takes a server that adds products up.
  virtual std::string refuses(Feature feature) const;
};

}  // namespace fedpdpo
