// Groups, participation, and the average.
#include "fedpdpo/fed/aggregator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "fedpdpo/comm/exact_sum.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/finite.hpp"
#include "fedpdpo/core/random.hpp"

namespace fedpdpo {

std::vector<int> group_of_clients(const RunOptions& options, const Partition& partition) {
  std::vector<int> group;
  const std::vector<int>& labels = options.cluster_labels;
  for (std::size_t c = 0; c < partition.clients.size(); ++c) {
    const ClientShare& client = partition.clients[c];
    if (client.is_new) {
      group.push_back(-1);
    } else if (options.groups == GroupKind::clusters && !labels.empty()) {
      if (labels.size() != partition.clients.size())
        throw InputError("", "--cluster-labels", fmt::format("{} numbers, one a client", partition.clients.size()),
                         fmt::format("{}", labels.size()));
      group.push_back(labels[c]);
    } else {
      group.push_back(options.groups == GroupKind::domain ? client.domain : 0);
    }
  }
  // Numbers in use follow one another, in their order.
  std::set<int> used(group.begin(), group.end());
  used.erase(-1);
  for (int& g : group)
    if (g >= 0) g = static_cast<int>(std::distance(used.begin(), used.find(g)));
  return group;
}

std::vector<int> draw_participants(std::span<const int> clients, double participation, std::uint64_t seed, int round,
                                   int group) {
  const auto n = clients.size();
  const double wanted = participation <= 1 ? std::round(participation * static_cast<double>(n)) : participation;
  const auto count = std::clamp<std::size_t>(static_cast<std::size_t>(std::max(1.0, wanted)), 1, n);
  if (count == n) return {clients.begin(), clients.end()};
  RandomStream stream(
      {seed, Purpose::participation, static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(round), 0});
  const std::vector<std::uint32_t> order = stream.permutation(static_cast<std::uint32_t>(n));
  std::vector<int> chosen;
  for (std::size_t i = 0; i < count; ++i) chosen.push_back(clients[order[i]]);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<int> draw_poisson(std::span<const int> clients, double probability, std::uint64_t seed, int round) {
  std::vector<int> chosen;
  for (int client : clients) {
    RandomStream stream(
        {seed, Purpose::participation, static_cast<std::uint32_t>(client), static_cast<std::uint32_t>(round), 1});
    if (stream.uniform() < probability) chosen.push_back(client);
  }
  return chosen;
}

AggregationGroup::AggregationGroup(const Communicator& world, int index, std::span<const int> members,
                                   std::vector<int> clients, std::vector<std::size_t> blocks, ReductionPlan reduction)
    : index_(index),
      clients_(std::move(clients)),
      blocks_(std::move(blocks)),
      reduction_(reduction.kind),
      communicator_(world.subgroup(members, index)) {
  server.values.resize(blocks_.back());
  if (reduction.route == ReductionRoute::flat) return;
  check(reduction.ranks_per_node >= 0, "ranks a node: not negative");
  communicator_.use_hierarchy(reduction.ranks_per_node > 0 ? std::optional(world.rank() / reduction.ranks_per_node)
                                                           : std::nullopt);
}

void AggregationGroup::use_route(Aggregation wanted, const RankDevice& own, const std::string& needs_host,
                                 Backend& backend) {
  device_sum_.reset();
  nccl_.reset();
  route_ = choose_route(wanted, gather_devices(communicator_, own), needs_host);
  if (route_.place == SumPlace::host) return;
  if (route_.place == SumPlace::all_devices) nccl_ = std::make_unique<NcclCommunicator>(communicator_, backend);
  device_sum_ = std::make_unique<DeviceSum>(backend, blocks_, nccl_.get());
}

AggregationGroup::Peaks AggregationGroup::look_at(std::span<Contribution> own) const {
  if (!device_sum_) {
    for (Contribution& c : own) c.finite = c.finite && all_finite(c.values);
    return {};
  }
  std::vector<SumTerm> terms;
  for (const Contribution& c : own) terms.push_back({c.on_device, c.values});
  Peaks peaks = device_sum_->peaks(terms);
  for (std::size_t i = 0; i < own.size(); ++i) own[i].finite = own[i].finite && all_finite(peaks[i]);
  return peaks;
}

Reduced AggregationGroup::average(std::span<Contribution> own, std::span<float> average) const {
  check(average.size() == blocks_.back(), "average: another size than the shared span");
  const Peaks peaks = look_at(own);
  // Weights are numbers of pairs: whole, so their sum is exact in any order.
  std::int64_t totals[3] = {0, 0, 0};
  for (const Contribution& c : own) {
    totals[0] += c.finite ? 1 : 0;
    totals[1] += c.finite ? static_cast<std::int64_t>(c.weight) : 0;
    totals[2] += c.finite ? 0 : 1;
  }
  communicator_.sum(std::span<std::int64_t>(totals));
  const Reduced reduced{static_cast<int>(totals[0]), static_cast<int>(totals[2])};
  if (reduced.num_finite == 0) return reduced;
  std::vector<SumTerm> terms;
  Peaks peaks_of_terms;
  for (std::size_t i = 0; i < own.size(); ++i) {
    const Contribution& c = own[i];
    if (!c.finite) continue;
    terms.push_back({c.on_device, c.values, c.weight / static_cast<double>(totals[1])});
    if (device_sum_) peaks_of_terms.push_back(peaks[i]);
  }
  if (!device_sum_) {
    sum_on_host(terms, reduced.num_finite, average);
  } else if (reduction_ == Reduction::fast) {
    device_sum_->fast(terms, average);
  } else {
    device_sum_->exact(communicator_, terms, peaks_of_terms, reduced.num_finite, average);
  }
  return reduced;
}

void AggregationGroup::sum_on_host(std::span<const SumTerm> terms, int num_terms, std::span<float> average) const {
  if (reduction_ == Reduction::fast) {
    FastSum sum(average.size());
    for (const SumTerm& term : terms) sum.add(term.host, term.weight);
    sum.reduce(communicator_, average);
    return;
  }
  ExactSum sum(blocks_, num_terms);
  for (const SumTerm& term : terms) check(sum.observe(term.host, term.weight), "a contribution stopped being finite");
  sum.agree(communicator_);
  for (const SumTerm& term : terms) sum.add(term.host, term.weight);
  sum.reduce(communicator_, average);
}

}  // namespace fedpdpo
