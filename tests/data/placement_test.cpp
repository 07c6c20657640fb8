// Longest processing time first, on cases worked by hand.
#include "fedpdpo/data/placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "fedpdpo/core/random.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

// Graham's example: 7 7 6 6 5 5 4 4 4 on four ranks gives 15 where 12 is possible.
TEST(Placement, GrahamsWorstCase) {
  const std::vector<double> costs{4, 7, 5, 6, 4, 7, 5, 6, 4};
  const Placement placement = place_clients(costs, 4);
  EXPECT_EQ(placement.rank_of_client, (std::vector<int>{0, 0, 2, 2, 1, 1, 3, 3, 0}));
  EXPECT_EQ(placement.rank_cost, (std::vector<double>{15, 11, 11, 11}));
  EXPECT_DOUBLE_EQ(placement.imbalance(), 15.0 / 12);
  EXPECT_EQ(placement.clients_of(0), (std::vector<int>{0, 1, 8}));
  EXPECT_EQ(placement.clients_of(2), (std::vector<int>{2, 3}));
}

TEST(Placement, TiesGoToTheLowerClientAndRank) {
  const std::vector<double> costs{1, 1, 1, 1, 1};
  const Placement placement = place_clients(costs, 2);
  EXPECT_EQ(placement.rank_of_client, (std::vector<int>{0, 1, 0, 1, 0}));
  EXPECT_EQ(placement.rank_cost, (std::vector<double>{3, 2}));
  EXPECT_DOUBLE_EQ(placement.imbalance(), 1.2);
}

TEST(Placement, RanksMayStayEmpty) {
  const std::vector<double> costs{2, 3};
  const Placement placement = place_clients(costs, 4);
  EXPECT_EQ(placement.rank_of_client, (std::vector<int>{1, 0}));
  EXPECT_EQ(placement.rank_cost, (std::vector<double>{3, 2, 0, 0}));
  EXPECT_DOUBLE_EQ(placement.imbalance(), 3 / 1.25);
  EXPECT_TRUE(placement.clients_of(3).empty());
}

TEST(Placement, NothingToDoIsBalanced) {
  EXPECT_DOUBLE_EQ(place_clients({}, 3).imbalance(), 1);
  EXPECT_EQ(place_clients({}, 3).rank_cost.size(), 3u);
}

// No plan is better than the mean, the largest client, or two of the m + 1 largest on one rank; greedy ones are never
// worse than the mean plus what the last client adds (Graham 1966).
TEST(Placement, StaysWithinGrahamsBounds) {
  RandomStream random({.seed = 11, .purpose = Purpose::test});
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<double> costs(1 + random.below(40));
    for (double& cost : costs) cost = static_cast<double>(random.below(1000));
    const std::size_t num_ranks = 1 + random.below(9);
    const Placement placement = place_clients(costs, static_cast<int>(num_ranks));
    std::vector<double> sums(num_ranks, 0.0);
    double total = 0;
    for (std::size_t i = 0; i < costs.size(); ++i) {
      sums.at(static_cast<std::size_t>(placement.rank_of_client[i])) += costs[i];
      total += costs[i];
    }
    EXPECT_EQ(sums, placement.rank_cost);
    std::sort(costs.begin(), costs.end(), std::greater<>());
    const double mean = total / static_cast<double>(num_ranks);
    double least = std::max(mean, costs.front());
    if (costs.size() > num_ranks) least = std::max(least, costs[num_ranks - 1] + costs[num_ranks]);
    const double longest = *std::max_element(sums.begin(), sums.end());
    EXPECT_GE(longest, least - 1e-9);
    EXPECT_LE(longest, mean + costs.front() * (1 - 1.0 / static_cast<double>(num_ranks)) + 1e-9);
  }
}

TEST(Placement, RefusesNonsense) {
  const std::vector<double> negative{1, -1};
  EXPECT_CONTRACT_VIOLATION(place_clients(negative, 2), "not negative");
  EXPECT_CONTRACT_VIOLATION(place_clients({}, 0), "at least one rank");
}

}  // namespace
}  // namespace fedpdpo::test
