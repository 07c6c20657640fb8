// Who takes part, which groups there are, and the weighted average of their results, computed by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/aggregator.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();

std::vector<int> ten() {
  std::vector<int> clients(10);
  std::iota(clients.begin(), clients.end(), 0);
  return clients;
}

TEST(DrawParticipants, FractionOrCount) {
  const std::vector<int> clients = ten();
  const std::pair<double, std::size_t> cases[] = {{1, 10},  {0.5, 5}, {0.3, 3}, {0.24, 2}, {0.26, 3}, {0.04, 1},
                                                  {0.0, 1}, {2, 2},   {7, 7},   {10, 10},  {99, 10}};
  for (const auto& [participation, expected] : cases)
    EXPECT_EQ(draw_participants(clients, participation, 1, 1, 0).size(), expected) << participation;
}

TEST(DrawParticipants, AreAscendingMembersOfTheGroup) {
  const std::vector<int> clients{3, 8, 12, 31, 40};
  EXPECT_EQ(draw_participants(clients, 1, 1, 1, 0), clients);
  for (int round = 1; round <= 50; ++round) {
    const std::vector<int> drawn = draw_participants(clients, 3, 1, round, 0);
    ASSERT_EQ(drawn.size(), 3u);
    EXPECT_TRUE(std::is_sorted(drawn.begin(), drawn.end()));
    EXPECT_EQ(std::adjacent_find(drawn.begin(), drawn.end()), drawn.end());
    for (int client : drawn) EXPECT_TRUE(std::binary_search(clients.begin(), clients.end(), client));
  }
}

TEST(DrawParticipants, FollowSeedRoundAndGroup) {
  const std::vector<int> clients = ten();
  const auto rounds = [&](std::uint64_t seed, int group) {
    std::vector<std::vector<int>> all;
    for (int round = 1; round <= 20; ++round) all.push_back(draw_participants(clients, 0.3, seed, round, group));
    return all;
  };
  const auto once = rounds(1, 0);
  EXPECT_EQ(rounds(1, 0), once);
  EXPECT_NE(rounds(2, 0), once) << "the seed does not reach participation";
  EXPECT_NE(rounds(1, 1), once) << "groups draw alike";
  EXPECT_GT(std::count_if(once.begin(), once.end(), [&](const auto& drawn) { return drawn != once[0]; }), 15)
      << "rounds draw alike";
}

/// 3 of 10 in 400 rounds: 120 times each, standard deviation 9; 80 to 160 is more than four of them.
TEST(DrawParticipants, EveryClientIsDrawnAsOften) {
  std::map<int, int> count;
  for (int round = 1; round <= 400; ++round)
    for (int client : draw_participants(ten(), 0.3, 7, round, 0)) ++count[client];
  for (int client : ten()) {
    EXPECT_GT(count[client], 80) << client;
    EXPECT_LT(count[client], 160) << client;
  }
}

/// Each of ten with probability 0.3, alone: 120 of 400 rounds, standard deviation 9.2, so 80 to 160 is more than four
/// of them; and of the round's sizes the variance is 10 * 0.3 * 0.7 = 2.1 (a draw of a fixed number has none), whose
/// standard error over 400 rounds is about 2.1 * sqrt(2 / 400) = 0.15.
TEST(DrawPoisson, EveryClientIsDrawnAloneAndAsOften) {
  std::map<int, int> count;
  double sum = 0, squares = 0;
  for (int round = 1; round <= 400; ++round) {
    const std::vector<int> drawn = draw_poisson(ten(), 0.3, 7, round);
    EXPECT_TRUE(std::is_sorted(drawn.begin(), drawn.end()));
    EXPECT_EQ(std::adjacent_find(drawn.begin(), drawn.end()), drawn.end());
    for (int client : drawn) ++count[client];
    sum += static_cast<double>(drawn.size());
    squares += static_cast<double>(drawn.size() * drawn.size());
  }
  for (int client : ten()) {
    EXPECT_GT(count[client], 80) << client;
    EXPECT_LT(count[client], 160) << client;
  }
  EXPECT_EQ(count.size(), 10u);
  const double mean = sum / 400;
  EXPECT_NEAR(squares / 400 - mean * mean, 2.1, 0.6);
}

/// Whether a client takes part follows from (seed, round, client): not from who else could.
TEST(DrawPoisson, FollowsSeedRoundAndClient) {
  const auto rounds = [](std::span<const int> clients, std::uint64_t seed) {
    std::vector<std::vector<int>> all;
    for (int round = 1; round <= 20; ++round) all.push_back(draw_poisson(clients, 0.5, seed, round));
    return all;
  };
  const auto once = rounds(ten(), 1);
  EXPECT_EQ(rounds(ten(), 1), once);
  EXPECT_NE(rounds(ten(), 2), once) << "the seed does not reach participation";
  EXPECT_GT(std::count_if(once.begin(), once.end(), [&](const auto& drawn) { return drawn != once[0]; }), 15)
      << "rounds draw alike";
  const std::vector<int> few{2, 3, 8};
  const auto alone = rounds(few, 1);
  for (std::size_t round = 0; round < once.size(); ++round)
    for (int client : few)
      EXPECT_EQ(std::binary_search(alone[round].begin(), alone[round].end(), client),
                std::binary_search(once[round].begin(), once[round].end(), client));
}

TEST(DrawPoisson, NobodyAndEverybody) {
  const std::vector<int> clients = ten();
  for (int round = 1; round <= 20; ++round) {
    EXPECT_TRUE(draw_poisson(clients, 0, 1, round).empty());
    EXPECT_EQ(draw_poisson(clients, 1, 1, round), clients);
  }
  int empty = 0;
  for (int round = 1; round <= 100; ++round) empty += draw_poisson(clients, 0.05, 1, round).empty() ? 1 : 0;
  EXPECT_GT(empty, 30) << "0.95^10 = 0.60 of the rounds have nobody";
}

TEST(GroupOfClients, AllOrByDomain) {
  Partition partition;
  for (int domain : {0, 0, 1, 2, 2}) {
    partition.clients.emplace_back();
    partition.clients.back().domain = domain;
  }
  RunOptions options;
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{0, 0, 0, 0, 0}));
  options.groups = GroupKind::domain;
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{0, 0, 1, 2, 2}));
  // New clients are in no group, and the numbers of the others leave no gap.
  partition.clients[2].is_new = true;
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{0, 0, -1, 1, 1}));
  // Groups that are found later begin as one.
  for (const GroupKind kind : {GroupKind::all, GroupKind::clusters, GroupKind::agreement}) {
    options.groups = kind;
    EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{0, 0, -1, 0, 0}));
  }
}

TEST(GroupOfClients, ByGivenLabels) {
  Partition partition;
  partition.clients.resize(5);
  RunOptions options;
  options.groups = GroupKind::clusters;
  options.cluster_labels = {7, 3, 7, 9, 3};
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{1, 0, 1, 2, 0}));
  partition.clients[3].is_new = true;
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{1, 0, 1, -1, 0}));
  options.cluster_labels.pop_back();
  EXPECT_INPUT_ERROR(group_of_clients(options, partition),
                     "--cluster-labels: expected 5 numbers, one a client, found 4");
  options.groups = GroupKind::all;
  EXPECT_EQ(group_of_clients(options, partition), (std::vector<int>{0, 0, 0, -1, 0})) << "labels belong to clusters";
}

class Average : public testing::TestWithParam<Reduction> {
 protected:
  Communicator world = Communicator::world();
  AggregationGroup group(std::size_t size) {
    const int self[] = {world.rank()};
    return {world, 3, self, {0, 1, 2}, {0, size / 2, size}, {GetParam()}};
  }
};

/// Weights 1 and 3, numbers that are exact in binary: the average is exact.
TEST_P(Average, IsWeightedByPairs) {
  AggregationGroup g = group(4);
  EXPECT_EQ(g.index(), 3);
  EXPECT_EQ(g.server.values.size(), 4u);
  const std::vector<float> a{4, -8, 0.5f, 0}, b{8, 4, 0.5f, -2};
  std::vector<Contribution> own{{0, 1, a}, {1, 3, b}};
  std::vector<float> average(4, nan);
  const Reduced reduced = g.average(own, average);
  EXPECT_EQ(average, (std::vector<float>{7, 1, 0.5f, -1.5f}));
  EXPECT_EQ(reduced.num_finite, 2);
  EXPECT_EQ(reduced.num_left_out, 0);
  EXPECT_TRUE(own[0].finite && own[1].finite);
}

TEST_P(Average, OfOneClientIsThatClient) {
  AggregationGroup g = group(4);
  const std::vector<float> a{0.1f, -1e-30f, 3e30f, 1.0f / 3};
  std::vector<Contribution> own{{2, 17, a}};
  std::vector<float> average(4, nan);
  g.average(own, average);
  EXPECT_EQ(average, a);
}

TEST_P(Average, LeavesOutWhatIsNotFiniteAndReweights) {
  const std::vector<float> a{4, -8, 0.5f, 0}, b{8, 4, 0.5f, -2};
  for (const float bad : {nan, inf, -inf, 1.0f}) {
    AggregationGroup g = group(4);
    const std::vector<float> c{1, 1, bad, 1};
    // The last case's numbers are finite, but the client itself says that its update is not.
    std::vector<Contribution> own{{0, 1, a}, {1, 5, c, bad != 1.0f}, {2, 3, b}};
    std::vector<float> average(4, nan);
    const Reduced reduced = g.average(own, average);
    EXPECT_EQ(average, (std::vector<float>{7, 1, 0.5f, -1.5f})) << bad;
    EXPECT_EQ(reduced.num_finite, 2);
    EXPECT_EQ(reduced.num_left_out, 1);
    EXPECT_TRUE(own[0].finite && own[2].finite);
    EXPECT_FALSE(own[1].finite);
  }
}

TEST_P(Average, StaysWhereAllAreLeftOut) {
  AggregationGroup g = group(2);
  const std::vector<float> a{nan, 1}, b{1, inf};
  std::vector<Contribution> own{{0, 1, a}, {1, 3, b}};
  std::vector<float> average{5, 6};
  const Reduced reduced = g.average(own, average);
  EXPECT_EQ(average, (std::vector<float>{5, 6}));
  EXPECT_EQ(reduced.num_finite, 0);
  EXPECT_EQ(reduced.num_left_out, 2);
}

TEST_P(Average, IsNearTheAverageInDouble) {
  AggregationGroup g = group(200);
  RandomStream random({.seed = 3, .purpose = Purpose::test});
  std::vector<std::vector<float>> values(5, std::vector<float>(200));
  std::vector<Contribution> own;
  std::vector<double> expected(200, 0.0);
  for (int c = 0; c < 5; ++c) {
    auto& v = values[static_cast<std::size_t>(c)];
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] = static_cast<float>(random.normal());
      expected[i] += (10 + c) / 60.0 * static_cast<double>(v[i]);
    }
    own.push_back({c, 10.0 + c, v});
  }
  std::vector<float> average(200);
  g.average(own, average);
  // exact: one rounding to float, 6e-8 of the sum; fast: one a term, of numbers up to 3.
  const double bound = GetParam() == Reduction::exact ? 6e-8 : 1e-6;
  for (std::size_t i = 0; i < 200; ++i) EXPECT_NEAR(average[i], expected[i], bound * (1 + std::abs(expected[i]))) << i;
}

TEST_P(Average, RefusesAnotherSize) {
  AggregationGroup g = group(4);
  std::vector<float> average(3);
  EXPECT_CONTRACT_VIOLATION(g.average({}, average), "another size");
}

INSTANTIATE_TEST_SUITE_P(Reductions, Average, testing::Values(Reduction::exact, Reduction::fast),
                         [](const auto& i) { return i.param == Reduction::exact ? "exact" : "fast"; });

/// One client a rank, and one more on rank 0 that is broken: every rank gets the same average of the sound ones.
TEST(Ranks, AverageOverRanks) {
  const Communicator world = Communicator::world();
  std::vector<int> members(static_cast<std::size_t>(world.size())), clients(members.size() + 1);
  std::iota(members.begin(), members.end(), 0);
  std::iota(clients.begin(), clients.end(), 0);
  for (const Reduction reduction : {Reduction::exact, Reduction::fast}) {
    const AggregationGroup group(world, 0, members, clients, {0, 2}, {reduction});
    EXPECT_EQ(group.communicator().size(), world.size());
    const std::vector<float> values{static_cast<float>(world.rank() + 1), -2}, broken{nan, 0};
    std::vector<Contribution> own{{world.rank(), world.rank() + 1.0, values}};
    if (world.rank() == 0) own.push_back({world.size(), 100, broken});
    std::vector<float> average(2);
    const Reduced reduced = group.average(own, average);
    EXPECT_EQ(reduced.num_finite, world.size());
    EXPECT_EQ(reduced.num_left_out, 1);
    double sum = 0, weights = 0;
    for (int r = 1; r <= world.size(); ++r) {
      sum += r * r;
      weights += r;
    }
    EXPECT_NEAR(average[0], sum / weights, 1e-6);
    EXPECT_NEAR(average[1], -2, 1e-6);
    // A rank without a contribution takes part all the same.
    std::vector<Contribution> first;
    if (world.rank() == 0) first.push_back({0, 1, values});
    const Reduced one = group.average(first, average);
    EXPECT_EQ(one.num_finite, 1);
    EXPECT_EQ(average, (std::vector<float>{1, -2}));
  }
}

/// Groups of all ranks and of all but the last, whose nodes are uneven.
TEST(Ranks, AverageByWayOfTheNodes) {
  const Communicator world = Communicator::world();
  for (int size = world.size(); size >= std::max(1, world.size() - 1); --size) {
    if (world.rank() >= size) continue;
    std::vector<int> members(static_cast<std::size_t>(size));
    std::iota(members.begin(), members.end(), 0);
    RandomStream random({.seed = 5, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(world.rank())});
    std::vector<float> values(1000);
    for (float& v : values) v = static_cast<float>(random.normal());
    const auto average_of = [&](ReductionPlan plan, bool hierarchical) {
      const AggregationGroup group(world, size, members, members, {0, 300, 1000}, plan);
      EXPECT_EQ(group.communicator().is_hierarchical(), hierarchical);
      std::vector<Contribution> own{{world.rank(), 1.0 + world.rank(), values}};
      std::vector<float> average(values.size());
      group.average(own, average);
      return average;
    };
    const std::vector<float> flat = average_of({}, false);
    for (const int per_node : {0, 1, 2, 3, 100}) {
      const bool nodes = size > per_node && per_node > 1;
      EXPECT_EQ(average_of({Reduction::exact, ReductionRoute::hierarchical, per_node}, nodes), flat) << per_node;
      const std::vector<float> fast = average_of({Reduction::fast, ReductionRoute::hierarchical, per_node}, nodes);
      for (std::size_t i = 0; i < flat.size(); ++i) EXPECT_NEAR(fast[i], flat[i], 1e-6 * (1 + std::abs(flat[i])));
    }
  }
}

TEST(Ranks, DrawTheSameParticipants) {
  const Communicator world = Communicator::world();
  for (int round = 1; round <= 20; ++round) {
    const std::vector<int> own = draw_participants(ten(), 0.4, 11, round, 2);
    for (const auto& bytes : world.all_gather(std::as_bytes(std::span(own)))) {
      ASSERT_EQ(bytes.size(), own.size() * sizeof(int));
      EXPECT_EQ(std::memcmp(bytes.data(), own.data(), bytes.size()), 0) << round;
    }
  }
}

}  // namespace
}  // namespace fedpdpo::test
