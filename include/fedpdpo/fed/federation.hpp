// Federation: the round loop. Sample -> local training of the hosted participants -> evaluation `before` -> exchange on
// each group's communicator -> evaluation `after` -> metrics to rank 0 -> run file -> checkpoint. It belongs to no
// method: what differs between methods is asked of FederatedMethod.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "fedpdpo/fed/aggregator.hpp"
#include "fedpdpo/fed/hosted_clients.hpp"
#include "fedpdpo/fed/options.hpp"
#include "fedpdpo/fed/round_table.hpp"
#include "fedpdpo/record/run_file.hpp"

namespace fedpdpo {

/// What a federation is made of; everything outlives it.
struct FederationInput {
  const Communicator& world;
  Backend& backend;
  const ModelConfig& config;
  const Weights& weights;
  const PairSet& pairs;
  const Partition& partition;
  const Placement& placement;
  const ReferenceLogProbs& reference;
  const RunOptions& options;
  const FederatedMethod& method;
  std::string model_hash;  ///< of the model's content, the same on every rank
};

class Federation {
 public:
  /// Collective. Takes up the newest valid checkpoint where options.resume asks for it.
  explicit Federation(const FederationInput& input);

  /// Collective. Runs to the last round and completes the run file (given on rank 0, null elsewhere). Throws
  /// RequeueRequest after a checkpoint that a signal asked for.
  void run(RunFile* run_file);

  const ParameterLayout& layout() const { return layout_; }

 private:
  enum class Stage : std::uint8_t { before_exchange, after_exchange };

  bool is_evaluated(int round) const;
  std::vector<Phase> phases(int round) const;
  std::vector<int> participants(const AggregationGroup& group, int round) const;
  bool participates(int client) const;
  std::vector<Group> private_groups() const;
  void begin_round();
  bool train_locally();
  bool train_cohort(std::span<HostedClient* const> cohort, std::span<const Phase> plan);
  bool trains_shared(const Phase& phase) const;
  bool refit();
  bool evaluate_all(Point point);
  void exchange();
  std::map<std::string, std::vector<float>> average_payloads(const AggregationGroup& group,
                                                             std::span<const Contribution> own,
                                                             std::span<HostedClient* const> hosted);
  void upload_server(const AggregationGroup& group);
  void distribute(const AggregationGroup& group);
  LocalStep local_step(ClientState& state, View values, View gradient);
  void record(RunFile* run_file);
  void record_aggregation_error();
  void report_progress() const;
  FinalMargins gather_margins();
  bool any_rank(bool value) const;
  void save();
  void save_or_throw(bool stop);
  void restore();
  std::filesystem::path checkpoint_directory() const;
  std::vector<ClientPair> pooled_pairs() const;
  AggregationGroup* group_of(int client);

  FederationInput in_;
  std::vector<Split> splits_;
  ParameterLayout layout_;
  RoundTable table_;
  LossOptions loss_;
  Policy policy_;
  HostedClients clients_;
  std::unique_ptr<LocalTrainer> trainer_;
  std::vector<std::unique_ptr<AggregationGroup>> groups_;  // those of this rank
  std::map<int, Tensor> server_on_device_;                 // by group index
  std::map<int, std::map<std::string, Tensor>> server_state_on_device_;
  std::vector<ClientPair> pool_;                          // centralized: the pooled train pairs
  std::map<int, std::vector<double>> aggregation_error_;  // by group index, on the group's rank 0
  std::map<int, Evaluation> last_test_;                   // by client
  std::unique_ptr<History> history_;                      // rank 0

  int round_ = 0;
  int serial_ = 0;  // of checkpoints within the round
  Stage stage_ = Stage::before_exchange;
  std::vector<int> present_;               // participants of the round, hosted here
  std::map<std::string, double> seconds_;  // of the round, by phase
};

}  // namespace fedpdpo
