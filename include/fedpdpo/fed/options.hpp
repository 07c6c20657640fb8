// Everything that a run is told, resolved: the one structure that the command line fills and the federation reads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/data/partition.hpp"
#include "fedpdpo/fed/compression.hpp"
#include "fedpdpo/fed/privacy.hpp"
#include "fedpdpo/model/adapter_options.hpp"
#include "fedpdpo/train/graphs.hpp"
#include "fedpdpo/train/losses.hpp"
#include "fedpdpo/train/optimizer_options.hpp"

namespace fedpdpo {

enum class LocalSchedule : std::uint8_t { joint, alternate };
enum class GroupKind : std::uint8_t {
  all,
  domain,     ///< by data file
  clusters,   ///< so many, by the direction of the first updates or by given labels
  agreement,  ///< as many as there are conflicting directions, found anew every round
};
enum class Reduction : std::uint8_t { exact, fast };
enum class ReductionRoute : std::uint8_t { flat, hierarchical };
enum class Aggregation : std::uint8_t { automatic, host, nccl };
enum class Precision : std::uint8_t { fp32, bf16 };
enum class Resume : std::uint8_t { none, automatic };

struct RunOptions {
  // input
  std::filesystem::path model;
  std::vector<std::filesystem::path> data;
  // federation
  std::string method = "fedpdpo";
  PartitionOptions partition;  // --clients, --alpha, --partition, --flip-clients, --min-train, --max-train, ..., --seed
  int rounds = 20;
  int steps = 4;             ///< local steps per round
  int batch = 8;             ///< pairs per step
  double participation = 1;  ///< <= 1: share of the clients; > 1: so many; drawn from (seed, round)
  GroupKind groups = GroupKind::all;
  int num_clusters = 0;             ///< of clusters
  std::vector<int> cluster_labels;  ///< clusters: group of every client; empty: found
  double agreement_errors = 3;      ///< agreement: GroupingRule::errors
  Reduction reduce = Reduction::exact;
  ReductionRoute reduce_route = ReductionRoute::flat;
  Aggregation aggregation = Aggregation::automatic;
  int ranks_per_node = 0;        ///< hierarchical: so many consecutive ranks are a node; 0: as MPI sees the nodes
  double prox_mu = 0.01;         ///< fedprox
  double server_lr = 1;          ///< fedavgm, fedadagrad, fedyogi, fedadam: eta
  double server_momentum = 0.9;  ///< the same: beta1
  double server_beta2 = 0.99;    ///< fedyogi, fedadam
  double server_tau = 1e-3;      ///< fedadagrad, fedyogi, fedadam: adaptivity
  PrivacyOptions privacy;
  CompressionOptions compression;
  std::vector<int> lora_ranks;  ///< flora: LoRA ranks, dealt to the clients in turn; empty: --lora-rank for all
  double personal_prox = 0.1;   ///< --personal-lora ditto
  double personal_mix = 0.5;    ///< --personal-lora apfl
  int personal_samples = 32;    ///< --personal-lora feddpa
  int refit = 0;  ///< steps after averaging, before the `after` evaluation, on what is private (fedavg-ft: LoRA, too)
  // local training
  AdapterOptions adapter;
  LossOptions loss;
  OptimizerOptions optimizer;
  LocalSchedule schedule = LocalSchedule::joint;
  double private_share = 0.5;  ///< alternate: share of the steps in the private phase
  // execution
  std::string device = "cpu";
  Precision precision = Precision::fp32;
  int threads = 1;
  int cohort = 0;      ///< clients trained in lock-step by a rank; 0: auto (fed/cohort.hpp)
  int micro_rows = 0;  ///< packed rows per forward and backward pass; 0: auto
  int resident = 0;    ///< clients whose state is on the device at once, the others' is swapped; 0: auto
  Graphs graphs = Graphs::small_passes;
  // output
  int eval_every = 1;
  std::string eval_splits = "validation,test";
  std::optional<int> aggregation_error_every;  ///< rounds; 0: never; without a number: in the rounds that are evaluated
  bool cross_eval = false;                     ///< at the end, every client's model on every client's test pairs
  int new_client_steps = 16;                   ///< steps for which clients that never trained fit their private modules
  int checkpoint_every = 0;
  std::filesystem::path checkpoint_dir;  ///< default: OUT without .h5, plus ".ckpt"
  Resume resume = Resume::none;
  std::filesystem::path
      reference_cache;  ///< default: $FEDPDPO_CACHE, else $XDG_CACHE_HOME/fedpdpo, else ~/.cache/fedpdpo
  std::filesystem::path out;
  bool overwrite = false;

  std::uint64_t seed() const { return partition.seed; }
  int lora_rank_of(int client) const {
    return lora_ranks.empty() ? adapter.lora_rank : lora_ranks[static_cast<std::size_t>(client) % lora_ranks.size()];
  }
};

/// Every option as text by its long name ("lr-shared" -> "0.001"): what run.h5 records. The numbers are written so that
/// reading them gives the same value.
std::map<std::string, std::string> describe(const RunOptions& options);
/// True for options that do not change what a run computes (how it is done, and where files lie): a run that differs in
/// them alone is the same run.
bool is_execution_option(std::string_view name);
/// Where the run's checkpoints lie.
std::filesystem::path checkpoint_directory(const RunOptions& options);

}  // namespace fedpdpo
