// Compression by hand-computed numbers, its error bounds, and that error feedback loses nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/compression.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;
using Blocks = std::vector<std::size_t>;

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

CompressionOptions int8_options() { return {.kind = Compression::int8}; }
CompressionOptions topk_options(double share) { return {.kind = Compression::topk, .topk_share = share}; }

Values random_values(std::size_t size, std::uint32_t client) {
  RandomStream stream({9, Purpose::test, client, 0, 0});
  Values values(size);
  for (float& v : values) v = static_cast<float>(stream.normal());
  return values;
}

TEST(Compression, NoneLeavesValuesAndMemory) {
  const Values base{1, 2, 3};
  Values values{4, 5, -6}, memory{7, 8, 9};
  const Compressed done = compress_update({}, Blocks{0, 3}, base, values, memory);
  EXPECT_EQ(done.bytes, 12u);
  EXPECT_EQ(done.error, 0);
  EXPECT_TRUE(done.finite);
  EXPECT_EQ(values, (Values{4, 5, -6}));
  EXPECT_EQ(memory, (Values{7, 8, 9}));
}

/// Two blocks of scales 1 and 0.5; 2.5 and 3.5 lie between two whole numbers and go to the even one.
TEST(Int8, ByHand) {
  const Values base{0, 0, 0, 10, 10, 10, 10};
  Values values{127, 2.5, 3.5, 73.5, 10.25, 9.4, 10}, memory(7, 0);
  const Compressed done = compress_update(int8_options(), Blocks{0, 3, 7}, base, values, memory);
  EXPECT_EQ(values, (Values{127, 2, 4, 73.5, 10, 9.5, 10}));
  EXPECT_EQ(done.bytes, 7u + 2 * 4);
  const Values left{0, 0.5, -0.5, 0, 0.25, -0.1f, 0};
  for (std::size_t i = 0; i < 7; ++i) EXPECT_NEAR(memory[i], left[i], 1e-6) << i;
  const double lost = 0.25 + 0.25 + 0.0625 + 0.01;
  const double whole = 127 * 127 + 2.5 * 2.5 + 3.5 * 3.5 + 63.5 * 63.5 + 0.0625 + 0.36;
  EXPECT_NEAR(done.error, std::sqrt(lost / whole), 1e-7);
}

TEST(Int8, TheMemoryIsAddedFirst) {
  const Values base{0, 0};
  Values values{127, 1}, memory{0, 1.75};
  compress_update(int8_options(), Blocks{0, 2}, base, values, memory);
  EXPECT_EQ(values, (Values{127, 3}));
  EXPECT_EQ(memory, (Values{0, -0.25}));
}

TEST(Int8, ErrorIsAtMostHalfAScale) {
  const std::size_t size = 5000;
  const Blocks blocks{0, 1, 1, 700, size};  // one of a single value and one of none
  for (float unit : {1.0f, 1e-30f, 1e-38f, 1e-43f, 1e30f}) {
    const Values base(size, 0);
    Values values = random_values(size, 1);
    for (float& v : values) v *= unit;
    const Values u = values;
    Values memory(size, 0);
    const Compressed done = compress_update(int8_options(), blocks, base, values, memory);
    EXPECT_EQ(done.bytes, size + 4 * 4);
    for (std::size_t b = 0; b + 1 < blocks.size(); ++b) {
      float largest = 0;
      for (std::size_t i = blocks[b]; i < blocks[b + 1]; ++i) largest = std::max(largest, std::abs(u[i]));
      // Where fp32 is subnormal the scale is a whole number of its smallest steps, rounded up.
      const double bound = (largest / 127.0 + std::numeric_limits<float>::denorm_min()) / 2 * (1 + 1e-6);
      for (std::size_t i = blocks[b]; i < blocks[b + 1]; ++i)
        ASSERT_LE(std::abs(static_cast<double>(u[i]) - values[i]), bound + 1e-7 * std::abs(u[i])) << i << ' ' << unit;
    }
    if (unit > 1e-35f) {
      EXPECT_LT(done.error, 0.011) << unit;
    }
  }
}

/// Of five values, two: -4 and 3.
TEST(TopK, ByHand) {
  const Values base{1, 1, 1, 1, 1};
  Values values{2, -3, 1.5, 4, 1}, memory(5, 0);
  const Compressed done = compress_update(topk_options(0.4), Blocks{0, 2, 5}, base, values, memory);
  EXPECT_EQ(values, (Values{1, -3, 1, 4, 1}));
  EXPECT_EQ(memory, (Values{1, 0, 0.5, 0, 0}));
  EXPECT_EQ(done.bytes, 16u);
  EXPECT_NEAR(done.error, std::sqrt((1 + 0.25) / (1 + 16 + 0.25 + 9)), 1e-15);
  // In the next round the update is zero: what is left is sent.
  values = base;
  compress_update(topk_options(0.4), Blocks{0, 2, 5}, base, values, memory);
  EXPECT_EQ(values, (Values{2, 1, 1.5, 1, 1}));
  EXPECT_EQ(memory, Values(5, 0));
}

TEST(TopK, Counts) {
  EXPECT_EQ(topk_count(0.01, 1000), 10u);
  EXPECT_EQ(topk_count(0.01, 1001), 11u);
  EXPECT_EQ(topk_count(0.07, 100), 7u) << "0.07 * 100 is a little above 7";
  EXPECT_EQ(topk_count(0.01, 5), 1u);
  EXPECT_EQ(topk_count(1, 5), 5u);
  EXPECT_EQ(topk_count(0.5, 0), 0u);
  for (double share : {0.001, 0.1, 0.999, 1.0}) {
    const std::size_t size = 3000, count = topk_count(share, size);
    const Values base(size, 0), u = random_values(size, 2);
    Values values = u, memory(size, 0);
    EXPECT_EQ(compress_update(topk_options(share), Blocks{0, size}, base, values, memory).bytes, 8 * count);
    EXPECT_EQ(size - static_cast<std::size_t>(std::count(values.begin(), values.end(), 0.0f)), count);
    float least_sent = inf, most_left = 0;
    for (std::size_t i = 0; i < size; ++i)
      if (values[i] != 0) {
        least_sent = std::min(least_sent, std::abs(u[i]));
      } else {
        most_left = std::max(most_left, std::abs(u[i]));
      }
    EXPECT_GE(least_sent, most_left) << share;
  }
}

TEST(TopK, TiesGoToTheLowerIndex) {
  const Values base(6, 0);
  Values values{1, -2, 2, 3, 2, -2}, memory(6, 0);
  compress_update(topk_options(0.5), Blocks{0, 6}, base, values, memory);
  EXPECT_EQ(values, (Values{0, -2, 2, 3, 0, 0}));
  EXPECT_EQ(memory, (Values{1, 0, 0, 0, 2, -2}));
}

/// A contraction: ||u - Q(u)||^2 <= (1 - k / size) ||u||^2.
TEST(TopK, Contracts) {
  for (double share : {0.01, 0.1, 0.5}) {
    const Values base(2000, 0);
    Values values = random_values(2000, 3), memory(2000, 0);
    EXPECT_LT(compress_update(topk_options(share), Blocks{0, 2000}, base, values, memory).error, std::sqrt(1 - share));
  }
}

/// Over the rounds, sum of what was sent + memory = sum of the updates.
TEST(ErrorFeedback, LosesNothing) {
  const std::size_t size = 400;
  const Blocks blocks{0, 150, size};
  for (const CompressionOptions& options : {int8_options(), topk_options(0.05)}) {
    std::vector<double> updates(size, 0), sent(size, 0);
    Values memory(size, 0);
    const int num_rounds = 60;
    for (int round = 0; round < num_rounds; ++round) {
      const Values base = random_values(size, 1000);
      Values values = random_values(size, static_cast<std::uint32_t>(round));
      for (std::size_t i = 0; i < size; ++i) updates[i] += static_cast<double>(values[i]) - base[i];
      compress_update(options, blocks, base, values, memory);
      for (std::size_t i = 0; i < size; ++i) sent[i] += static_cast<double>(values[i]) - base[i];
    }
    // Numbers below 64 are rounded to fp32 a few times a round, by at most 2^-19 each.
    for (std::size_t i = 0; i < size; ++i) EXPECT_NEAR(sent[i] + memory[i], updates[i], num_rounds * 3 * 0x1p-19) << i;
    EXPECT_GT(*std::max_element(memory.begin(), memory.end()), 0);
  }
}

TEST(ErrorFeedback, OffNeitherReadsNorWritesTheMemory) {
  const Values base(4, 0);
  Values values{4, 3, 2, 1}, memory{9, 9, 9, 9}, none;
  CompressionOptions options = topk_options(0.5);
  options.error_feedback = false;
  compress_update(options, Blocks{0, 4}, base, values, memory);
  EXPECT_EQ(values, (Values{4, 3, 0, 0}));
  EXPECT_EQ(memory, Values(4, 9));
  values = {4, 3, 2, 1};
  compress_update(options, Blocks{0, 4}, base, values, none);
  EXPECT_EQ(values, (Values{4, 3, 0, 0}));
  EXPECT_CONTRACT_VIOLATION(compress_update(topk_options(0.5), Blocks{0, 4}, base, values, none), "memory");
}

TEST(Compression, OfAZeroUpdateHasNoError) {
  const Values base{1, -2, 3};
  for (const CompressionOptions& options : {int8_options(), topk_options(0.5), CompressionOptions{}}) {
    Values values = base, memory(3, 0);
    const Compressed done = compress_update(options, Blocks{0, 1, 3}, base, values, memory);
    EXPECT_EQ(done.error, 0);
    EXPECT_TRUE(done.finite);
    EXPECT_EQ(values, base);
    EXPECT_EQ(memory, Values(3, 0));
  }
}

TEST(Compression, LeavesWhatIsNotFinite) {
  const Values base{1, 2, 3};
  for (const CompressionOptions& options : {int8_options(), topk_options(0.5), CompressionOptions{}})
    for (float bad : {nan, inf}) {
      Values values{5, bad, 7}, memory{1, 2, 3};
      EXPECT_FALSE(compress_update(options, Blocks{0, 3}, base, values, memory).finite);
      EXPECT_EQ(values[0], 5);
      EXPECT_EQ(values[2], 7);
      EXPECT_EQ(memory, (Values{1, 2, 3}));
    }
}

TEST(Compression, RefusesSpansThatDoNotFit) {
  const Values base(3, 0);
  Values values(3, 0), memory(3, 0);
  EXPECT_CONTRACT_VIOLATION(compress_update(int8_options(), Blocks{0, 2}, base, values, memory), "blocks");
  EXPECT_CONTRACT_VIOLATION(compress_update(topk_options(0), Blocks{0, 3}, base, values, memory), "share");
}

}  // namespace
}  // namespace fedpdpo::test
