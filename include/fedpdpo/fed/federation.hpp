// Federation: the round loop. Sample -> local training of the hosted participants -> evaluation `before` -> exchange on
// each group's communicator -> evaluation `after` -> metrics to rank 0 -> run file -> checkpoint. It belongs to no
// method: what differs between methods is asked of FederatedMethod.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "fedpdpo/fed/aggregator.hpp"
#include "fedpdpo/fed/cohort.hpp"
#include "fedpdpo/fed/hosted_clients.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "fedpdpo/fed/options.hpp"
#include "fedpdpo/fed/personalization.hpp"
#include "fedpdpo/fed/round_table.hpp"
#include "fedpdpo/record/run_file.hpp"
#include "fedpdpo/train/evaluation.hpp"
#include "fedpdpo/train/local_trainer.hpp"

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
  /// How the clients are trained here: what --cohort, --micro-rows and --resident came to.
  std::map<std::string, std::string> execution_facts() const;

 private:
  enum class Stage : std::uint8_t { before_exchange, after_exchange };
  enum class Moment : std::uint8_t { within_round, end_of_round };

  /// A hosted participant's result of the round, as the server gets it.
  struct Result {
    HostedClient* client;
    std::vector<float>
        values;           // y_i, compressed and clipped where options ask for it; empty where nobody needs it here
    ConstView on_device;  // y_i; without data where it was changed on the host, or the client is not there
  };

  bool is_evaluated(int round) const;
  std::vector<Phase> phases(int round) const;
  std::vector<Group> private_groups() const;
  void begin_round();
  void restart_moments(HostedClient& client);

  // groups (federation_groups.cpp)
  std::vector<int> participants(int round) const;
  double sampling_rate() const;
  bool participates(int client) const;
  AggregationGroup* group_of(int client);
  void form_groups(std::vector<int> assignment);
  void regroup(std::vector<int> assignment);
  std::vector<ServerState> server_states();
  bool finds_groups() const;
  std::optional<std::vector<int>> wanted_groups(std::span<const Result> results);
  std::vector<int> cluster_updates(std::span<const Result> results);

  // routes of sums (federation_routes.cpp)
  void choose_routes();

  // cohorts (federation_cohort.cpp)
  void take_cohort(const CheckpointReader* begun);
  std::optional<std::string> allocate(const CohortChoice& choice, std::size_t later);
  std::vector<HostedClients::Cohort> cohorts(std::span<HostedClient* const> clients,
                                             const std::function<int(const HostedClient&)>& done);
  std::vector<HostedClient*> clients_in_groups();
  bool train_locally();
  bool train_cohort(std::span<HostedClient* const> cohort, std::span<const Phase> plan);
  bool trains(const Phase& phase, bool shared) const;
  LocalTrainer::Hooks hooks(const Phase& phase);
  Phase private_phase(int steps, bool everything) const;
  bool refit();

  // evaluation (federation_evaluate.cpp)
  void use_backbone_of(int client);
  const std::vector<float>& own_instance_weights(const HostedClient& client, Split split);
  Adapter present_adapter() const { return personalization_ ? Adapter::personal : Adapter::shared; }
  Evaluation evaluate_on(const HostedClient& client, std::span<const ClientPair> pairs, std::span<const float> weights,
                         Adapter adapter);
  std::optional<std::vector<Evaluation>> evaluate_cohort(std::span<HostedClient* const> cohort, Split split,
                                                         const std::function<bool()>& stop);
  std::vector<float> weigh_instances(const HostedClient& client, std::span<const ClientPair> pairs);
  bool evaluate_all(Point point);
  FinalMargins gather_margins();
  CrossEvaluation cross_evaluate();
  NewClients fit_new_clients();

  // exchange (federation_exchange.cpp)
  void exchange();
  std::vector<Result> collect_results();
  bool needs_results_on_host() const;
  void compress_and_clip(Result& result);
  void measure_update(const Result& result, View work);
  bool records_aggregation_error() const;
  void average_group(AggregationGroup& group, std::span<Result> results, std::span<const float> common);
  std::vector<float> average_common(std::span<Result> results);
  std::vector<Contribution> contributions(const AggregationGroup* group, std::span<Result> results);
  void privatize(const AggregationGroup& group, const Reduced& reduced, std::span<float> average) const;
  std::map<std::string, std::vector<float>> average_payloads(const AggregationGroup& group,
                                                             std::span<const Contribution> own);
  void upload_server(const AggregationGroup& group);
  void distribute(const AggregationGroup& group);
  LocalStep local_step(ClientState& state, View values, View gradient);

  // record and checkpoint (federation_record.cpp, federation_checkpoint.cpp)
  ExchangeFacts sent(const HostedClient& client);
  void record(RunFile* run_file);
  void record_aggregation_error();
  void report_progress() const;
  bool any_rank(bool value) const;
  void save(Moment moment);
  void save_or_throw(bool stop, Moment moment = Moment::within_round);
  void require_same_run(const CheckpointReader& reader) const;
  void restore(const CheckpointReader& reader);
  std::vector<ClientPair> pooled_pairs() const;

  FederationInput in_;
  std::vector<Split> splits_;
  ParameterLayout layout_;
  RoundTable table_;
  LossOptions loss_;
  Policy policy_;
  HostedClients clients_;
  CohortChoice cohort_;
  std::vector<std::int64_t> resident_;  // clients with state on the device, by rank
  std::unique_ptr<LocalTrainer> trainer_;
  std::unique_ptr<Personalization> personalization_;       // may be null
  std::vector<int> assignment_;                            // group of every client, -1: a new client
  std::vector<std::unique_ptr<AggregationGroup>> groups_;  // those of this rank
  std::unique_ptr<AggregationGroup> everyone_;             // where something is averaged over all groups
  std::map<int, MovedBackbone> backbones_;                 // by group index, where the method moves them
  std::map<int, Tensor> server_on_device_;                 // by group index
  std::map<int, std::map<std::string, Tensor>> server_state_on_device_;
  std::string routes_;                                                    // of the groups' sums, as run.h5 records it
  std::vector<ClientPair> pool_;                                          // centralized: the pooled train pairs
  std::map<int, std::vector<double>> aggregation_error_;                  // by group index, on the group's rank 0
  std::map<int, Evaluation> last_test_;                                   // by client
  std::map<std::pair<int, Split>, std::vector<float>> instance_weights_;  // by client and split, where they are used
  std::unique_ptr<History> history_;                                      // rank 0

  int round_ = 0;
  int serial_ = 0;  // of checkpoints within the round
  Stage stage_ = Stage::before_exchange;
  std::vector<int> drawn_;                 // participants of the round, on all ranks
  std::vector<int> present_;               // those hosted here
  bool resumed_ = false;                   // drawn_ comes from a checkpoint
  std::map<std::string, double> seconds_;  // of the round, by phase
};

}  // namespace fedpdpo
