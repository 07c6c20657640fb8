// Sums over ranks in device memory, on emulated devices and emulated NCCL: the bits of the host's sums, in the order of
// the stream, and one line for what goes wrong. Every rank runs all of it; rank r has device r.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "device_errors.hpp"
#include "emulation.hpp"
#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/comm/device_sum.hpp"
#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/aggregator.hpp"

namespace fedpdpo {
namespace {

std::vector<std::uint32_t> bits_of(std::span<const float> values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

class EmulatedNcclTest : public testing::Test {
 protected:
  void TearDown() override {
    emulation::set_nccl_state(emulation::NcclState::sound);
    emulation::lose_device(false);
    EXPECT_EQ(emulation::nccl_counts().communicators, 0) << "every communicator is given back";
    world.barrier();
  }

  Tensor upload(std::span<const float> values) {
    Tensor tensor(*backend, 1, static_cast<std::int64_t>(values.size()));
    backend->copy_to_device(tensor.view().data, values.data(), values.size_bytes());
    return tensor;
  }
  std::vector<float> download(ConstView view) {
    std::vector<float> values(static_cast<std::size_t>(view.size()));
    backend->copy_to_host(values.data(), view.data, values.size() * sizeof(float));
    return values;
  }
  /// Near the weighted sum over all ranks in double, relative to the terms' size.
  void expect_fast(const std::vector<float>& found, const std::vector<std::vector<float>>& terms,
                   const std::vector<double>& weights) {
    std::vector<double> expected(found.size()), size(found.size());
    for (std::size_t t = 0; t < terms.size(); ++t)
      for (std::size_t i = 0; i < found.size(); ++i) {
        expected[i] += weights[t] * static_cast<double>(terms[t][i]);
        size[i] += std::abs(weights[t] * static_cast<double>(terms[t][i]));
      }
    world.sum(std::span(expected));
    world.sum(std::span(size));
    for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6 * size[i]) << i;
  }
  /// Of this rank: as many as its number, and one more where it is alone; magnitudes over 40 octaves.
  std::vector<std::vector<float>> random_terms(std::size_t length) {
    RandomStream random({.seed = 8, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(world.rank())});
    std::vector<std::vector<float>> terms(static_cast<std::size_t>(world.size() == 1 ? 3 : world.rank()));
    for (auto& term : terms)
      for (std::size_t i = 0; i < length; ++i)
        term.push_back(static_cast<float>(std::ldexp(random.normal(), static_cast<int>(random.below(40)) - 20)));
    return terms;
  }
  int num_terms() const { return world.size() == 1 ? 3 : world.size() * (world.size() - 1) / 2; }
  std::vector<int> members() const {
    std::vector<int> ranks(static_cast<std::size_t>(world.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }

  Communicator world = Communicator::world();
  std::unique_ptr<Backend> backend = make_cuda_backend({.device = world.rank()});
};

TEST_F(EmulatedNcclTest, SumsInTheOrderOfTheStream) {
  EXPECT_EQ(nccl_status().version, "2.28.9");
  EXPECT_EQ(nccl_status().why_not, "");
  NcclCommunicator nccl(world, *backend);
  const auto rank = static_cast<float>(world.rank()), size = static_cast<float>(world.size());
  Tensor x = upload(std::vector<float>{1, rank, -2});
  nccl.sum(x.view());
  backend->axpy(0.5f, x.view(), x.view(), Write::overwrite);
  nccl.sum(x.view().columns(1, 3));
  nccl.wait();
  const float total = size * (size - 1) / 2;
  EXPECT_EQ(download(x.view()), (std::vector<float>{size / 2, size * total / 2, -size * size}));
  // Integers are added modulo 2^64.
  Tensor sums(*backend, 1, 2, DType::i64);
  const std::int64_t largest = std::numeric_limits<std::int64_t>::max(), own[] = {largest, -world.rank()};
  backend->copy_to_device(sums.view().data, own, sizeof own);
  nccl.sum(sums.view());
  nccl.wait();
  std::int64_t found[2];
  backend->copy_to_host(found, sums.view().data, sizeof found);
  EXPECT_EQ(static_cast<std::uint64_t>(found[0]),
            static_cast<std::uint64_t>(largest) * static_cast<std::uint64_t>(world.size()));
  EXPECT_EQ(found[1], -static_cast<std::int64_t>(total));
  EXPECT_ANY_THROW(nccl.sum({x.view().data, 1, 3, 3, DType::bf16}));
}

TEST_F(EmulatedNcclTest, ExactSumsHaveTheBitsOfTheHosts) {
  const std::vector<std::size_t> blocks{0, 100, 100, 101, 900};
  const auto terms = random_terms(blocks.back());
  const double weight = 1.0 / 3;
  ExactSum on_host(blocks, num_terms());
  for (const auto& term : terms) ASSERT_TRUE(on_host.observe(term, weight));
  on_host.agree(world);
  for (const auto& term : terms) on_host.add(term, weight);
  std::vector<float> expected(blocks.back()), found(blocks.back());
  on_host.reduce(world, expected);

  NcclCommunicator nccl(world, *backend);
  DeviceSum on_device(*backend, blocks, &nccl);
  std::vector<Tensor> uploaded;
  std::vector<SumTerm> given;
  for (const auto& term : terms) {
    uploaded.push_back(upload(term));
    const bool stays = given.size() % 2 == 1;  // some come from the host
    given.push_back({stays ? ConstView{} : ConstView(uploaded.back().view()), term, weight});
  }
  for (int again = 0; again < 2; ++again) {
    on_device.exact(world, given, on_device.peaks(given), num_terms(), found);
    EXPECT_EQ(bits_of(found), bits_of(expected));
  }
  on_device.fast(given, found);
  expect_fast(found, terms, std::vector<double>(terms.size(), weight));
  EXPECT_EQ(std::count_if(expected.begin(), expected.end(), [](float x) { return x != 0; }), 900);
}

TEST_F(EmulatedNcclTest, AveragesByNcclAndByTheHostAreTheSame) {
  for (const Reduction reduction : {Reduction::exact, Reduction::fast}) {
    AggregationGroup group(world, 0, members(), members(), {0, 5, 600}, {reduction});
    const auto terms = random_terms(600);
    std::vector<Tensor> uploaded;
    std::vector<Contribution> own;
    for (const auto& term : terms) {
      uploaded.push_back(upload(term));
      own.push_back({world.rank(), 1.0 + static_cast<double>(own.size()), term});
    }
    // One is broken, in its last number alone.
    std::vector<float> broken(600, 1.0f);
    broken.back() = std::numeric_limits<float>::quiet_NaN();
    uploaded.push_back(upload(broken));
    own.push_back({world.rank(), 5, broken});
    std::vector<float> expected(600), found(600);
    std::vector<Contribution> on_host = own;
    const Reduced host = group.average(on_host, expected);
    EXPECT_EQ(group.route().place, SumPlace::host);
    EXPECT_FALSE(group.sums_on_device());

    const int sums = emulation::nccl_counts().sums;
    group.use_route(Aggregation::automatic, describe_rank(world.rank(), *backend), {}, *backend);
    EXPECT_EQ(group.route().place, world.size() == 1 ? SumPlace::one_device : SumPlace::all_devices);
    EXPECT_TRUE(group.sums_on_device());
    for (std::size_t i = 0; i < own.size(); ++i) {
      own[i].on_device = uploaded[i].view();
      own[i].values = {};
    }
    const Reduced device = group.average(own, found);
    EXPECT_EQ(emulation::nccl_counts().sums - sums, world.size() == 1 ? 0 : 1);
    EXPECT_EQ(device.num_finite, host.num_finite);
    EXPECT_EQ(device.num_left_out, world.size());
    EXPECT_FALSE(own.back().finite);
    if (reduction == Reduction::exact) {
      EXPECT_EQ(bits_of(found), bits_of(expected));
    } else {
      double total = 0;
      std::vector<double> shares;
      for (std::size_t i = 0; i < terms.size(); ++i) shares.push_back(own[i].weight);
      for (const double weight : shares) total += weight;
      world.sum(std::span(&total, 1));
      for (double& weight : shares) weight /= total;
      expect_fast(found, terms, shares);
    }
    // Nobody's result is finite: the average stays.
    std::vector<Contribution> last{own.back()};
    std::vector<float> kept(600, 7.0f);
    EXPECT_EQ(group.average(last, kept).num_finite, 0);
    EXPECT_EQ(kept, std::vector<float>(600, 7.0f));
  }
}

TEST_F(EmulatedNcclTest, RanksOnOneDeviceGoByTheHost) {
  const auto shared = make_cuda_backend({.device = 0});
  const RankDevice own = describe_rank(world.rank(), *shared);
  AggregationGroup group(world, 0, members(), members(), {0, 4}, {});
  group.use_route(Aggregation::automatic, own, {}, *shared);
  if (world.size() == 1) {
    EXPECT_EQ(group.route().text(), "device (one rank)");
    return;
  }
  EXPECT_EQ(group.route().text(), "host (ranks 0 and 1 share the device 0000:10:00.0)");
  EXPECT_FALSE(group.sums_on_device());
  // NCCL itself would refuse.
  const std::string line = device_error([&] { NcclCommunicator(world, *shared); });
  EXPECT_TRUE(line.starts_with("NCCL: ncclCommInitRank: invalid usage")) << line;
}

TEST_F(EmulatedNcclTest, WhatGoesWrongIsOneLine) {
  using emulation::NcclState;
  emulation::set_nccl_state(NcclState::refuses);
  std::string line = device_error([&] { NcclCommunicator(world, *backend); });
  EXPECT_TRUE(line.starts_with("NCCL: ncclCommInitRank: unhandled system error")) << line;
  emulation::set_nccl_state(NcclState::sound);

  const int aborts = emulation::nccl_counts().aborts;
  Tensor x = upload(std::vector<float>{1, 2});
  {
    NcclCommunicator nccl(world, *backend);
    nccl.sum(x.view());
    emulation::set_nccl_state(NcclState::remote_error);
    line = device_error([&] { nccl.wait(); });
    EXPECT_TRUE(line.starts_with("NCCL: a sum over ranks: remote process exited or there was a network error")) << line;
  }
  EXPECT_EQ(emulation::nccl_counts().aborts, aborts + 1) << "a broken communicator is not left in order";
  EXPECT_EQ(download(x.view()), (std::vector<float>{1, 2})) << "what was given to it never runs";
  emulation::set_nccl_state(NcclState::sound);
  {
    NcclCommunicator nccl(world, *backend);
    emulation::set_nccl_state(NcclState::refuses);
    line = device_error([&] { nccl.sum(x.view()); });
    EXPECT_TRUE(line.starts_with("NCCL: ncclAllReduce: unhandled system error")) << line;
    emulation::set_nccl_state(NcclState::sound);
  }
  // A rank that gives up for a reason of its own does not wait for the others.
  EXPECT_EQ(device_error([&] {
              NcclCommunicator nccl(world, *backend);
              throw DeviceError("mine");
            }),
            "mine");
  EXPECT_EQ(emulation::nccl_counts().aborts, aborts + 3);
  {
    NcclCommunicator nccl(world, *backend);
    emulation::lose_device(true);
    line = device_error([&] { nccl.wait(); });
    EXPECT_TRUE(line.starts_with("CUDA: a sum over ranks failed: cudaStreamQuery: cudaErrorIllegalAddress")) << line;
    emulation::lose_device(false);
  }
  EXPECT_EQ(emulation::nccl_counts().aborts, aborts + 4);
}

}  // namespace
}  // namespace fedpdpo
