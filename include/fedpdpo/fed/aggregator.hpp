// Aggregation groups and the weighted average of their clients' shared parameters. A rank belongs to a group where it
// hosts at least one of its clients; each group has a communicator of its own, and a rank can be in several.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/comm/device_sum.hpp"
#include "fedpdpo/data/placement.hpp"
#include "fedpdpo/fed/aggregation_route.hpp"
#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/fed/options.hpp"
#include "fedpdpo/train/client_state.hpp"

namespace fedpdpo {

/// Group of every client at the start; groups are numbered from 0, new clients are in none (-1).
std::vector<int> group_of_clients(const RunOptions& options, const Partition& partition);

/// Clients of a group that take part in a round (1-based), drawn from (seed, round, group), at least one; ascending.
std::vector<int> draw_participants(std::span<const int> clients, double participation, std::uint64_t seed, int round,
                                   int group);

/// The same where each client takes part with this probability, alone: what the privacy accountant counts on. May be
/// nobody. Drawn from (seed, round, client).
std::vector<int> draw_poisson(std::span<const int> clients, double probability, std::uint64_t seed, int round);

/// One client's result of a round.
struct Contribution {
  int client = 0;
  double weight = 0;              ///< n_i, its train pairs
  std::span<const float> values;  ///< y_i over the shared span, on the host; may be empty where it is on the device
  bool finite = true;             ///< false: left out
  float lora_weight = 1;          ///< its LoRA's scale over the layout's
  ConstView on_device = {};       ///< the same (1, n) in the backend's memory; without data where it is not there
};

/// What a reduction did.
struct Reduced {
  int num_finite = 0;  ///< contributions counted, over all ranks
  int num_left_out = 0;
};

/// How sums are made over a group's ranks.
struct ReductionPlan {
  Reduction kind = Reduction::exact;
  ReductionRoute route = ReductionRoute::flat;
  int ranks_per_node = 0;  ///< hierarchical: so many consecutive ranks of the world are a node; 0: as MPI sees them
};

/// The group on this rank.
class AggregationGroup {
 public:
  /// Collective over `members`, the ranks that host its clients (this one among them).
  AggregationGroup(const Communicator& world, int index, std::span<const int> members, std::vector<int> clients,
                   std::vector<std::size_t> blocks, ReductionPlan reduction);

  int index() const { return index_; }
  std::span<const int> clients() const { return clients_; }
  std::size_t size() const { return blocks_.back(); }
  const Communicator& communicator() const { return communicator_; }
  /// Collective over the group. Where its sums are made from now on (host until then), see choose_route(); the backend
  /// outlives the group. DeviceError where NCCL fails.
  void use_route(Aggregation wanted, const RankDevice& own, const std::string& needs_host, Backend& backend);
  const AggregationRoute& route() const { return route_; }
  bool sums_on_device() const { return device_sum_ != nullptr; }
  /// sum p_i y_i over the finite contributions of all its ranks, p_i = n_i / sum n; collective over the group. With no
  /// finite contribution `average` is left as it is. Contributions are on the host, or with sums_on_device() on either.
  Reduced average(std::span<Contribution> own, std::span<float> average) const;

  ServerState server;

 private:
  using Peaks = std::vector<std::vector<float>>;

  /// Marks what is not finite; the peaks of all contributions where they are on the device.
  Peaks look_at(std::span<Contribution> own) const;
  void sum_on_host(std::span<const SumTerm> terms, int num_terms, std::span<float> average) const;

  int index_;
  std::vector<int> clients_;
  std::vector<std::size_t> blocks_;
  Reduction reduction_;
  Communicator communicator_;
  AggregationRoute route_{SumPlace::host, "not chosen"};
  std::unique_ptr<NcclCommunicator> nccl_;  // where all_devices
  std::unique_ptr<DeviceSum> device_sum_;   // null on the host
};

}  // namespace fedpdpo
