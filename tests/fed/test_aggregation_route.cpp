// Where sums are made, decided from what made-up ranks say of themselves.
#include <gtest/gtest.h>

#include "fedpdpo/fed/aggregation_route.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

/// Ranks on `nodes`, each with the device of its place in the node.
std::vector<RankDevice> ranks_on(const std::vector<std::string>& nodes) {
  std::vector<RankDevice> ranks;
  std::map<std::string, int> used;
  for (const std::string& node : nodes) {
    const int device = used[node]++;
    ranks.push_back(
        {static_cast<int>(ranks.size()) + 3, "cuda", node, "0000:0" + std::to_string(device) + ":00.0", "2.28.9", ""});
  }
  return ranks;
}

TEST(AggregationRoute, NcclWhereEveryRankHasItsOwnDevice) {
  for (const auto wanted : {Aggregation::automatic, Aggregation::nccl}) {
    // The same bus id on two nodes is two devices.
    const AggregationRoute route = choose_route(wanted, ranks_on({"a", "b", "a"}), "");
    EXPECT_EQ(route.place, SumPlace::all_devices);
    EXPECT_EQ(route.text(), "nccl 2.28.9");
  }
}

TEST(AggregationRoute, OneRankNeedsNoNccl) {
  std::vector<RankDevice> ranks = ranks_on({"a"});
  ranks[0].nccl = "";
  ranks[0].why_no_nccl = "not found";
  for (const auto wanted : {Aggregation::automatic, Aggregation::nccl}) {
    EXPECT_EQ(choose_route(wanted, ranks, "").place, SumPlace::one_device);
    EXPECT_EQ(choose_route(wanted, ranks, "").text(), "device (one rank)");
  }
  ranks[0].device = "";
  ranks[0].backend = "cpu";
  EXPECT_EQ(choose_route(Aggregation::automatic, ranks, "").text(), "host (rank 3 computes on its cpu)");
}

TEST(AggregationRoute, OtherwiseTheHostAndWhy) {
  const auto text = [](std::vector<RankDevice> ranks, const std::string& needs_host = {}) {
    const AggregationRoute route = choose_route(Aggregation::automatic, ranks, needs_host);
    EXPECT_EQ(route.place, SumPlace::host);
    // Asking for NCCL changes nothing about what is possible.
    EXPECT_EQ(choose_route(Aggregation::nccl, ranks, needs_host).text(), route.text());
    return route.text();
  };
  std::vector<RankDevice> ranks = ranks_on({"a", "b", "b", "a"});
  ranks[3].device = ranks[0].device;
  EXPECT_EQ(text(ranks), "host (ranks 3 and 6 share the device 0000:00:00.0)");
  ranks = ranks_on({"a", "b", "b"});
  ranks[2].backend = "cpu";
  ranks[2].device = "";
  EXPECT_EQ(text(ranks), "host (rank 5 computes on its cpu)");
  ranks = ranks_on({"a", "b"});
  ranks[1].nccl = "";
  ranks[1].why_no_nccl = "this program was built without NCCL";
  EXPECT_EQ(text(ranks), "host (rank 4 has no NCCL: this program was built without NCCL)");
  ranks[1].nccl = "2.18.1";
  ranks[1].why_no_nccl = "";
  EXPECT_EQ(text(ranks), "host (ranks 3 and 4 have NCCL 2.28.9 and 2.18.1)");
  EXPECT_EQ(text(ranks_on({"a", "b"}), "--dp-clip is done on the host"), "host (--dp-clip is done on the host)");
  EXPECT_EQ(choose_route(Aggregation::host, ranks_on({"a", "b"}), "").text(), "host (--aggregation host)");
}

TEST(AggregationRoute, WhatIsChangedOnTheHostIsSummedThere) {
  RunOptions options;
  EXPECT_EQ(needs_host_sums(options), "");
  options.compression.kind = Compression::topk;
  EXPECT_EQ(needs_host_sums(options), "--compress topk is done on the host");
  options.compression.kind = Compression::none;
  options.privacy.clip = 0.5;
  EXPECT_EQ(needs_host_sums(options), "--dp-clip is done on the host");
}

TEST(Ranks, TellOneAnotherTheirDevices) {
  const Communicator world = Communicator::world();
  const RankDevice own{world.rank(),
                       "cuda",
                       "node " + std::to_string(world.rank() / 2),
                       std::string(1, 'a' + world.rank()),
                       "",
                       "libnccl.so.2: not\tfound"};
  const std::vector<RankDevice> all = gather_devices(world, own);
  ASSERT_EQ(static_cast<int>(all.size()), world.size());
  for (int r = 0; r < world.size(); ++r) {
    const RankDevice& found = all[static_cast<std::size_t>(r)];
    EXPECT_EQ(found.rank, r);
    EXPECT_EQ(found.backend, "cuda");
    EXPECT_EQ(found.node, "node " + std::to_string(r / 2));
    EXPECT_EQ(found.device, std::string(1, 'a' + r));
    EXPECT_EQ(found.nccl, "");
    EXPECT_EQ(found.why_no_nccl, own.why_no_nccl);
  }
  const std::unique_ptr<Backend> cpu = make_cpu_backend({});
  const RankDevice described = describe_rank(7, *cpu);
  EXPECT_EQ(described.rank, 7);
  EXPECT_EQ(described.backend, "cpu");
  EXPECT_EQ(described.device, "");
  EXPECT_NE(described.node, "");
  EXPECT_EQ(describe_rank(8, *cpu).node, described.node);
}

}  // namespace
}  // namespace fedpdpo::test
