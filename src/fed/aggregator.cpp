// Groups, participation, and the average.
#include "fedpdpo/fed/aggregator.hpp"

#include <algorithm>
#include <cmath>

#include "fedpdpo/comm/exact_sum.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/random.hpp"

namespace fedpdpo {
namespace {

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace

std::vector<int> group_of_clients(GroupKind kind, const Partition& partition) {
  std::vector<int> group;
  for (const ClientShare& client : partition.clients) group.push_back(kind == GroupKind::all ? 0 : client.domain);
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

AggregationGroup::AggregationGroup(const Communicator& world, int index, std::span<const int> members,
                                   std::vector<int> clients, std::vector<std::size_t> blocks, Reduction reduction)
    : index_(index),
      clients_(std::move(clients)),
      blocks_(std::move(blocks)),
      reduction_(reduction),
      communicator_(world.subgroup(members, index)) {
  server.values.resize(blocks_.back());
}

Reduced AggregationGroup::average(std::span<Contribution> own, std::span<float> average) const {
  check(average.size() == blocks_.back(), "average: another size than the shared span");
  // Weights are numbers of pairs: whole, so their sum is exact in any order.
  std::int64_t totals[3] = {0, 0, 0};
  for (Contribution& c : own) {
    c.finite = c.finite && all_finite(c.values);
    totals[0] += c.finite ? 1 : 0;
    totals[1] += c.finite ? static_cast<std::int64_t>(c.weight) : 0;
    totals[2] += c.finite ? 0 : 1;
  }
  communicator_.sum(std::span<std::int64_t>(totals));
  const Reduced reduced{static_cast<int>(totals[0]), static_cast<int>(totals[2])};
  if (reduced.num_finite == 0) return reduced;
  const auto share = [&](const Contribution& c) { return c.weight / static_cast<double>(totals[1]); };
  if (reduction_ == Reduction::fast) {
    FastSum sum(average.size());
    for (const Contribution& c : own)
      if (c.finite) sum.add(c.values, share(c));
    sum.reduce(communicator_, average);
    return reduced;
  }
  ExactSum sum(blocks_, reduced.num_finite);
  for (const Contribution& c : own)
    if (c.finite) check(sum.observe(c.values, share(c)), "a contribution stopped being finite");
  sum.agree(communicator_);
  for (const Contribution& c : own)
    if (c.finite) sum.add(c.values, share(c));
  sum.reduce(communicator_, average);
  return reduced;
}

}  // namespace fedpdpo
