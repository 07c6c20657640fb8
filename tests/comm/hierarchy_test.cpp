// Reduction inside the nodes and then between them: the same integers and maxima as the flat one, on however many ranks
// the program was started.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/comm/exact_sum.hpp"
#include "fedpdpo/core/random.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

constexpr int ranks_per_node[] = {1, 2, 3, 100};

/// `group` with its nodes of so many consecutive ranks.
Communicator with_nodes(const Communicator& group, int per_node) {
  Communicator other = *group.split(0);
  other.use_hierarchy(group.rank() / per_node);
  EXPECT_EQ(other.is_hierarchical(), per_node > 1 && group.size() > per_node);
  return other;
}

std::vector<float> normal(std::size_t size, int key) {
  RandomStream stream({.seed = 8, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(key)});
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(stream.normal());
  return values;
}

template <class T>
std::vector<T> summed(const Communicator& group, std::vector<T> values) {
  group.sum(std::span(values));
  return values;
}
template <class T>
std::vector<T> maximum(const Communicator& group, std::vector<T> values) {
  group.max(std::span(values));
  return values;
}

template <class Sum>
std::vector<float> reduced(const Communicator& group, Sum sum, std::span<const float> values) {
  if constexpr (std::is_same_v<Sum, ExactSum>) {
    EXPECT_TRUE(sum.observe(values, 0.3));
    sum.agree(group);
  }
  sum.add(values, 0.3);
  std::vector<float> result(values.size());
  sum.reduce(group, result);
  return result;
}

void expect_the_same(const Communicator& flat, const Communicator& by_nodes) {
  const int me = flat.rank();
  const std::vector<std::int64_t> integers{1, me, -me, std::int64_t{me} << 40, 7};
  EXPECT_EQ(summed(by_nodes, integers), summed(flat, integers));
  EXPECT_EQ(maximum(by_nodes, integers), maximum(flat, integers));
  const std::vector<double> doubles{0.5, static_cast<double>(me), -1e300, std::ldexp(1.0, -me)};
  EXPECT_EQ(maximum(by_nodes, doubles), maximum(flat, doubles));
  EXPECT_EQ(summed(by_nodes, doubles), summed(flat, doubles));  // exact in double in any order
  const std::vector<float> halves{0.25f, static_cast<float>(me)};
  EXPECT_EQ(summed(by_nodes, halves), summed(flat, halves));
  EXPECT_TRUE(summed(by_nodes, std::vector<std::int64_t>()).empty());

  const std::vector<float> values = normal(5003, me);
  const ExactSum exact({0, 3, 2000, 5003}, flat.size());
  EXPECT_EQ(reduced(by_nodes, exact, values), reduced(flat, exact, values));
  const std::vector<float> fast = reduced(flat, FastSum(values.size()), values);
  const std::vector<float> fast_by_nodes = reduced(by_nodes, FastSum(values.size()), values);
  for (std::size_t i = 0; i < fast.size(); ++i) {
    EXPECT_NEAR(fast_by_nodes[i], fast[i], 1e-6 * flat.size()) << i;
  }
}

TEST(Hierarchy, IsTheFlatReduction) {
  const Communicator world = Communicator::world();
  EXPECT_FALSE(world.is_hierarchical());
  for (const int per_node : ranks_per_node) expect_the_same(world, with_nodes(world, per_node));
}

TEST(Hierarchy, OfTheNodesThatMpiSees) {
  const Communicator world = Communicator::world();
  Communicator by_nodes = Communicator::world();
  by_nodes.use_hierarchy(std::nullopt);
  const int on_this_node = world.node().size();
  if (on_this_node == world.size()) {
    EXPECT_FALSE(by_nodes.is_hierarchical());
  }
  expect_the_same(world, by_nodes);
}

TEST(Hierarchy, NodesMayLieInAnyOrder) {
  const Communicator world = Communicator::world();
  Communicator by_nodes = Communicator::world();
  by_nodes.use_hierarchy((world.rank() + 1) % 2);
  EXPECT_EQ(by_nodes.is_hierarchical(), world.size() > 2);
  expect_the_same(world, by_nodes);
}

TEST(Hierarchy, OfASubgroup) {
  const Communicator world = Communicator::world();
  std::vector<int> members;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (rank != 1) members.push_back(rank);
  }
  if (world.rank() == 1) return;
  Communicator flat = world.subgroup(members, 3);
  Communicator by_nodes = world.subgroup(members, 4);
  by_nodes.use_hierarchy(world.rank() / 2);
  EXPECT_EQ(by_nodes.is_hierarchical(), flat.size() == 3);
  expect_the_same(flat, by_nodes);
  EXPECT_FALSE(by_nodes.split(0)->is_hierarchical());
}

TEST(Hierarchy, LongSumsAreCutIntoMessages) {
  const Communicator world = Communicator::world();
  const Communicator by_nodes = with_nodes(world, 2);
  std::vector<std::int64_t> values((std::size_t{1} << 23) + 77);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int64_t>(i * (1u << 20)) + world.rank();
  by_nodes.sum(values);
  const auto n = static_cast<std::int64_t>(world.size());
  std::size_t num_wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    num_wrong += values[i] != static_cast<std::int64_t>(i * (1u << 20)) * n + n * (n - 1) / 2 ? 1 : 0;
  }
  EXPECT_EQ(num_wrong, 0u);
}

TEST(Hierarchy, MovesAndChanges) {
  const Communicator world = Communicator::world();
  Communicator moved = with_nodes(world, 2);
  const Communicator again = std::move(moved);
  expect_the_same(world, again);
  Communicator changing = with_nodes(world, 2);
  changing.use_hierarchy(world.rank() / 3);
  EXPECT_EQ(changing.is_hierarchical(), world.size() > 3);
  expect_the_same(world, changing);
  changing.use_hierarchy(0);
  EXPECT_FALSE(changing.is_hierarchical());
  expect_the_same(world, changing);
  EXPECT_CONTRACT_VIOLATION(changing.use_hierarchy(-1), "not negative");
}

}  // namespace
}  // namespace fedpdpo::test
