// Groups by the direction of updates: hand-made cosines, and products over ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <numeric>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/grouping.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

using Groups = std::vector<int>;

Groups all_of(int num_clients) {
  Groups members(static_cast<std::size_t>(num_clients));
  std::iota(members.begin(), members.end(), 0);
  return members;
}

/// Products of directions with these cosines, client i's direction being i + 1 long.
std::vector<double> products(int n, const std::function<double(int, int)>& cosine) {
  std::vector<double> result;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) result.push_back((i == j ? 1 : cosine(i, j)) * (i + 1) * (j + 1));
  return result;
}

/// Clients below `first` against the others.
Groups two_camps(int first, int second, double within, double between, const GroupingRule& rule = {}) {
  const int n = first + second;
  const auto cosine = [&](int i, int j) { return (i < first) == (j < first) ? within : between; };
  return group_directions(products(n, cosine), n, all_of(n), rule);
}

Groups camps(int first, int second) {
  Groups expected(static_cast<std::size_t>(first), 0);
  expected.insert(expected.end(), static_cast<std::size_t>(second), 1);
  return expected;
}

/// Directions in the plane at 200, 10, 0, 90 and 210 degrees.
TEST(GroupDirections, SoManyGroups) {
  const double degrees[] = {200, 10, 0, 90, 210};
  const auto cosine = [&](int i, int j) { return std::cos((degrees[i] - degrees[j]) * std::numbers::pi / 180); };
  const std::vector<double> five = products(5, cosine);
  const auto groups = [&](int n) { return group_directions(five, 5, all_of(5), {.num_groups = n}); };
  EXPECT_EQ(groups(1), (Groups{0, 0, 0, 0, 0}));
  EXPECT_EQ(groups(2), (Groups{0, 1, 1, 1, 0})) << "90 is nearer to 0 and 10 than to 200 and 210";
  EXPECT_EQ(groups(3), (Groups{0, 1, 1, 2, 0}));
  EXPECT_EQ(groups(5), (Groups{0, 1, 2, 3, 4})) << "numbered in the order of their first client";
  EXPECT_EQ(groups(9), (Groups{0, 1, 2, 3, 4})) << "no more groups than clients";
}

TEST(GroupDirections, OthersThanMembersAreInNoGroup) {
  const auto cosine = [](int i, int j) { return i % 2 == j % 2 ? 0.5 : -0.5; };
  const Groups members{1, 2, 4, 5};
  EXPECT_EQ(group_directions(products(6, cosine), 6, members, {.num_groups = 2}), (Groups{-1, 0, 1, -1, 1, 0}));
}

TEST(GroupDirections, AMemberWithoutADirectionGoesWithTheLargestGroup) {
  const auto cosine = [](int i, int j) { return (i < 3) == (j < 3) ? 0.5 : -0.5; };
  std::vector<double> eight = products(8, cosine);  // 3 against 5
  for (const int silent : {0, 7})
    for (int k = 0; k < 8; ++k)
      eight[static_cast<std::size_t>(silent * 8 + k)] = eight[static_cast<std::size_t>(k * 8 + silent)] = 0;
  EXPECT_EQ(group_directions(eight, 8, all_of(8), {.num_groups = 2}), (Groups{0, 1, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(group_directions(std::vector<double>(9, 0), 3, all_of(3), {}), (Groups{0, 0, 0})) << "nobody has one";
}

/// Opposite camps are told apart, whichever is larger.
TEST(GroupDirections, OppositeCampsConflict) {
  EXPECT_EQ(two_camps(6, 6, 0.25, -0.25), camps(6, 6));
  EXPECT_EQ(two_camps(4, 8, 0.25, -0.25), camps(4, 8));
  const auto mixed = [](int i, int j) { return i % 3 / 2 == j % 3 / 2 ? 0.25 : -0.25; };
  EXPECT_EQ(group_directions(products(12, mixed), 12, all_of(12), {}), (Groups{0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1}));
}

/// Other data, no conflict: directions at right angles, or apart by less than half of what holds the camps together.
TEST(GroupDirections, SkewIsNoConflict) {
  EXPECT_EQ(two_camps(6, 6, 0, 0), Groups(12, 0)) << "everybody at right angles to everybody";
  EXPECT_EQ(two_camps(6, 6, 0.5, 0), Groups(12, 0));
  EXPECT_EQ(two_camps(6, 6, 0.75, -0.25), Groups(12, 0));
  EXPECT_EQ(two_camps(6, 6, 0.375, -0.25), camps(6, 6));
}

/// All cosines are +-1/4, so their root mean square is 1/4, and 3 standard errors of n pairs are 3/4 / sqrt(n): below
/// 1/4 from 10 pairs on. 3 x 3 = 9 pairs are too few, 3 x 4 enough; 2 errors take more than 4.
TEST(GroupDirections, FewPairsDoNotTell) {
  EXPECT_EQ(two_camps(3, 3, 0.25, -0.25), Groups(6, 0));
  EXPECT_EQ(two_camps(3, 4, 0.25, -0.25), camps(3, 4));
  EXPECT_EQ(two_camps(3, 3, 0.25, -0.25, {.errors = 2}), camps(3, 3));
  EXPECT_EQ(two_camps(2, 2, 0.25, -0.25, {.errors = 2}), Groups(4, 0));
}

TEST(GroupDirections, RefusesProductsOfAnotherSize) {
  EXPECT_CONTRACT_VIOLATION(group_directions(std::vector<double>(8), 3, all_of(3), {}), "products of all clients");
}

/// Longer than a piece of 2^16 values; client 3 has none.
constexpr int num_clients = 5;
constexpr std::size_t size = (std::size_t{1} << 17) + 77;

ClientDirection direction(int client) {
  ClientDirection result{client, std::vector<float>(size)};
  RandomStream random({.seed = 8, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(client)});
  for (float& v : result.values) v = static_cast<float>(random.normal());
  return result;
}

std::vector<ClientDirection> directions(int first, int step) {
  std::vector<ClientDirection> own;
  for (int client = first; client < num_clients; client += step)
    if (client != 3) own.push_back(direction(client));
  return own;
}

/// The same bits whoever hosts whom: dealt in turn, and the other way around, against one rank that has all.
TEST(Ranks, DirectionProductsAreThoseOfOneRank) {
  const Communicator world = Communicator::world();
  const int self[] = {world.rank()};
  const auto serial = direction_products(world.subgroup(self, 5), num_clients, directions(0, 1), size);
  for (const int first : {world.rank(), world.size() - 1 - world.rank()}) {
    const auto found = direction_products(world, num_clients, directions(first, world.size()), size);
    EXPECT_EQ(found, world.rank() == 0 ? serial : std::vector<double>());
  }
  ASSERT_EQ(serial.size(), 25u);
  for (int i = 0; i < num_clients; ++i)
    for (int j = 0; j < num_clients; ++j) {
      double expected = 0;
      if (i != 3 && j != 3) {
        const std::vector<float> a = direction(i).values, b = direction(j).values;
        for (std::size_t k = 0; k < size; ++k) expected += static_cast<double>(a[k]) * static_cast<double>(b[k]);
      }
      // 1.3e5 terms of order one, each sum rounded by 2^-53 of at most 1.3e5.
      EXPECT_NEAR(serial[static_cast<std::size_t>(i * num_clients + j)], expected, 1e-6) << i << ' ' << j;
    }
}

TEST(Ranks, DirectionProductsOfNobody) {
  const Communicator world = Communicator::world();
  const auto found = direction_products(world, 2, {}, 100);
  EXPECT_EQ(found, world.rank() == 0 ? std::vector<double>(4, 0) : std::vector<double>());
}

}  // namespace
}  // namespace fedpdpo::test
