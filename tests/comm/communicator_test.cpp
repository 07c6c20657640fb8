// Collectives and groups, on however many ranks the program was started. All expected values follow from the number of
// ranks.
#include "fedpdpo/comm/communicator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>

#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

// More than one message may carry, and no multiple of it.
constexpr std::size_t long_message = (std::size_t{1} << 26) + 12345;

std::int64_t sum_below(int n) { return std::int64_t{n} * (n - 1) / 2; }

std::vector<std::byte> pattern(std::size_t size, int key) {
  std::vector<std::byte> bytes(size);
  std::uint32_t state = static_cast<std::uint32_t>(key) * 2654435761u + 1;
  for (std::byte& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

TEST(Session, SaysWhichLibraryItIs) {
  EXPECT_NE(MpiSession::library_version().find("MPI"), std::string::npos);
  EXPECT_TRUE(is_one_line(MpiSession::library_version()));
}

TEST(Communicator, SumsAndMaxima) {
  const Communicator world = Communicator::world();
  const int n = world.size();
  const int me = world.rank();

  std::vector<std::int64_t> integers{1, me, std::int64_t{1} << 60, -me};
  world.sum(integers);
  EXPECT_EQ(integers, (std::vector<std::int64_t>{n, sum_below(n), (std::int64_t{1} << 60) * n, -sum_below(n)}));

  std::vector<double> doubles{0.5, static_cast<double>(me)};
  world.sum(doubles);
  EXPECT_EQ(doubles, (std::vector<double>{0.5 * n, static_cast<double>(sum_below(n))}));

  std::vector<float> floats{0.25f, static_cast<float>(me)};
  world.sum(floats);
  EXPECT_EQ(floats, (std::vector<float>{0.25f * static_cast<float>(n), static_cast<float>(sum_below(n))}));

  doubles = {static_cast<double>(me), static_cast<double>(-me), -1e300};
  world.max(doubles);
  EXPECT_EQ(doubles, (std::vector<double>{static_cast<double>(n - 1), 0, -1e300}));

  integers = {me, -me, std::numeric_limits<std::int64_t>::min()};
  world.max(integers);
  EXPECT_EQ(integers, (std::vector<std::int64_t>{n - 1, 0, std::numeric_limits<std::int64_t>::min()}));

  world.sum(std::span<double>());  // nothing to do
}

TEST(Communicator, LongSumsAreCutIntoMessages) {
  const Communicator world = Communicator::world();
  std::vector<std::int64_t> values((long_message + 7) / 8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int64_t>(i) + world.rank();
  world.sum(values);
  std::size_t num_wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    num_wrong += values[i] != static_cast<std::int64_t>(i) * world.size() + sum_below(world.size()) ? 1 : 0;
  }
  EXPECT_EQ(num_wrong, 0u);
}

TEST(Communicator, BroadcastsBytesAndTexts) {
  const Communicator world = Communicator::world();
  for (int root = 0; root < world.size(); ++root) {
    std::vector<std::byte> bytes = pattern(1000, world.rank());
    world.broadcast(bytes, root);
    EXPECT_EQ(bytes, pattern(1000, root));

    const std::string own =
        "rank " + std::to_string(world.rank()) + std::string(static_cast<std::size_t>(10 * world.rank()), '!');
    const std::string expected = "rank " + std::to_string(root) + std::string(static_cast<std::size_t>(10 * root), '!');
    EXPECT_EQ(world.broadcast(own, root), expected);
    EXPECT_EQ(world.broadcast(world.rank() == root ? "" : own, root), "");
  }
  std::vector<std::byte> bytes = pattern(long_message, world.rank());
  world.broadcast(bytes, world.size() - 1);
  EXPECT_TRUE(bytes == pattern(long_message, world.size() - 1));
}

std::vector<std::byte> ragged_part(int rank) {
  return pattern(rank % 2 == 1 ? 0 : static_cast<std::size_t>(37 * rank + 5), rank);
}

TEST(Communicator, GathersPartsOfDifferentSizes) {
  const Communicator world = Communicator::world();
  for (int root = 0; root < world.size(); ++root) {
    const auto parts = world.gather(ragged_part(world.rank()), root);
    if (world.rank() != root) {
      EXPECT_TRUE(parts.empty());
      continue;
    }
    ASSERT_EQ(parts.size(), static_cast<std::size_t>(world.size()));
    for (int rank = 0; rank < world.size(); ++rank) {
      EXPECT_EQ(parts[static_cast<std::size_t>(rank)], ragged_part(rank));
    }
  }
  const auto parts = world.all_gather(ragged_part(world.rank()));
  ASSERT_EQ(parts.size(), static_cast<std::size_t>(world.size()));
  for (int rank = 0; rank < world.size(); ++rank) {
    EXPECT_EQ(parts[static_cast<std::size_t>(rank)], ragged_part(rank));
  }
}

TEST(Communicator, GathersLongParts) {
  const Communicator world = Communicator::world();
  const int longest = world.size() - 1;
  const auto size_of = [&](int rank) { return rank == longest ? long_message : std::size_t{100}; };
  const auto expect_parts = [&](const std::vector<std::vector<std::byte>>& parts) {
    ASSERT_EQ(parts.size(), static_cast<std::size_t>(world.size()));
    for (int rank = 0; rank < world.size(); ++rank) {
      EXPECT_TRUE(parts[static_cast<std::size_t>(rank)] == pattern(size_of(rank), rank)) << "part " << rank;
    }
  };
  const std::vector<std::byte> own = pattern(size_of(world.rank()), world.rank());
  const auto on_root = world.gather(own, 0);
  if (world.rank() == 0) expect_parts(on_root);
  expect_parts(world.all_gather(own));
}

TEST(Communicator, SplitsByColour) {
  const Communicator world = Communicator::world();
  const bool even = world.rank() % 2 == 0;
  const std::optional<Communicator> half = world.split(even ? 0 : 1);
  ASSERT_TRUE(half.has_value());
  EXPECT_EQ(half->size(), even ? (world.size() + 1) / 2 : world.size() / 2);
  EXPECT_EQ(half->rank(), world.rank() / 2);
  std::vector<std::int64_t> sum{world.rank()};
  half->sum(sum);
  std::int64_t expected = 0;
  for (int rank = even ? 0 : 1; rank < world.size(); rank += 2) expected += rank;
  EXPECT_EQ(sum[0], expected);

  const std::optional<Communicator> first = world.split(world.rank() == 0 ? std::optional(7) : std::nullopt);
  EXPECT_EQ(first.has_value(), world.rank() == 0);
  if (first) {
    EXPECT_EQ(first->size(), 1);
  }
  EXPECT_CONTRACT_VIOLATION(world.split(-1), "not negative");
}

// Group g: all ranks but g. A rank is in all groups but its own, and all of them live at once.
TEST(Communicator, ARankMayBeInSeveralSubgroups) {
  const Communicator world = Communicator::world();
  const int n = world.size();
  std::vector<std::pair<int, Communicator>> groups;
  for (int g = 0; g < n; ++g) {
    std::vector<int> members(static_cast<std::size_t>(n));
    std::iota(members.begin(), members.end(), 0);
    if (n > 1) members.erase(members.begin() + g);
    if (n > 1 && world.rank() == g) {
      EXPECT_CONTRACT_VIOLATION(world.subgroup(members, g), "only the members");
      continue;
    }
    groups.emplace_back(g, world.subgroup(members, g));
  }
  EXPECT_EQ(groups.size(), static_cast<std::size_t>(std::max(n - 1, 1)));
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (const auto& [g, group] : groups) {
      EXPECT_EQ(group.size(), std::max(n - 1, 1));
      EXPECT_EQ(group.rank(), n > 1 && world.rank() > g ? world.rank() - 1 : world.rank());
      std::vector<std::int64_t> sum{world.rank() + repeat};
      group.sum(sum);
      EXPECT_EQ(sum[0], (n > 1 ? sum_below(n) - g : 0) + std::int64_t{repeat} * group.size());
    }
  }
  const std::vector<int> unsorted{1, 0};
  EXPECT_CONTRACT_VIOLATION(world.subgroup(unsorted, 0), "ascending");
  const std::vector<int> beyond{n};
  EXPECT_CONTRACT_VIOLATION(world.subgroup(beyond, 0), "ascending");
}

TEST(Communicator, MovesKeepTheGroup) {
  Communicator world = Communicator::world();
  const int n = world.size();
  Communicator moved = std::move(world);
  std::vector<std::int64_t> ones{1};
  moved.sum(ones);
  EXPECT_EQ(ones[0], n);
  world = std::move(moved);
  ones = {1};
  world.sum(ones);
  EXPECT_EQ(ones[0], n);
  EXPECT_EQ(world.size(), n);
}

TEST(NodeBuffer, IsOneMemoryForAllRanksOfTheNode) {
  const Communicator node = Communicator::world().node();
  ASSERT_GE(node.size(), 1);
  const std::size_t size = 100003;
  NodeBuffer first(node, size);
  const NodeBuffer buffer = std::move(first);
  ASSERT_EQ(buffer.bytes().size(), size);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.bytes().data()) % 64, 0u);
  // Each rank in turn writes the whole of it, and all see it: there is only one.
  for (int writer = 0; writer < node.size(); ++writer) {
    if (node.rank() == writer) {
      const std::vector<std::byte> content = pattern(size, writer);
      std::copy(content.begin(), content.end(), buffer.bytes().begin());
    }
    buffer.fence();
    EXPECT_TRUE(std::ranges::equal(buffer.bytes(), pattern(size, writer)));
    buffer.fence();
  }
}

TEST(NodeBuffer, MayBeEmptyOrReplaced) {
  const Communicator node = Communicator::world().node();
  NodeBuffer buffer(node, 0);
  EXPECT_TRUE(buffer.bytes().empty());
  buffer.fence();
  buffer = NodeBuffer(node, 64);
  if (node.rank() == 0) std::fill(buffer.bytes().begin(), buffer.bytes().end(), std::byte{7});
  buffer.fence();
  EXPECT_EQ(std::ranges::count(buffer.bytes(), std::byte{7}), 64);
  const NodeBuffer another(node, 64);  // two live at once
  if (node.rank() == node.size() - 1) std::fill(another.bytes().begin(), another.bytes().end(), std::byte{9});
  another.fence();
  EXPECT_EQ(std::ranges::count(another.bytes(), std::byte{9}), 64);
  EXPECT_EQ(std::ranges::count(buffer.bytes(), std::byte{7}), 64);
}

}  // namespace
}  // namespace fedpdpo::test
