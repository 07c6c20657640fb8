// Exact sums against wide integer arithmetic, and their independence of order, placement and number of ranks. A rank
// holds the terms that `owner` gives it; what one rank alone computes is the witness for all.
#include "fedpdpo/comm/exact_sum.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "fedpdpo/core/random.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

struct Term {
  std::vector<float> values;
  double weight = 1;
};

using Owner = std::function<int(std::size_t)>;
using Bits = std::vector<std::uint32_t>;

Bits bits_of(std::span<const float> values) {
  Bits bits;
  for (const float value : values) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

std::vector<float> sum_over(const Communicator& group, ExactSum& sum, const std::vector<Term>& terms,
                            const Owner& owner, std::size_t length) {
  std::vector<std::size_t> mine;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    if (owner(i) == group.rank() && sum.observe(terms[i].values, terms[i].weight)) mine.push_back(i);
  }
  sum.agree(group);
  for (const std::size_t i : mine) sum.add(terms[i].values, terms[i].weight);
  std::vector<float> result(length, -99.0f);
  sum.reduce(group, result);
  return result;
}

std::vector<float> sum_over(const Communicator& group, const std::vector<Term>& terms, const Owner& owner,
                            std::vector<std::size_t> blocks) {
  const std::size_t length = blocks.back();
  ExactSum sum(std::move(blocks), static_cast<int>(terms.size()));
  return sum_over(group, sum, terms, owner, length);
}

Communicator alone() {
  const Communicator world = Communicator::world();
  return *world.split(world.rank());
}

Owner dealt_to(int num_ranks) {
  return [num_ranks](std::size_t term) { return static_cast<int>(term) % num_ranks; };
}

float sum_of(const std::vector<std::pair<float, double>>& weighted) {
  std::vector<Term> terms;
  for (const auto& [value, weight] : weighted) terms.push_back({{value}, weight});
  const Communicator world = Communicator::world();
  return sum_over(world, terms, dealt_to(world.size()), {0, 1})[0];
}

// Any finite float, by its bits.
float random_float(RandomStream& random) {
  while (true) {
    const float value = std::bit_cast<float>(random.next_u32());
    if (std::isfinite(value)) return value;
  }
}

// Magnitudes spread over `octaves` powers of two around 2^centre.
std::vector<Term> random_terms(RandomStream& random, std::size_t num_terms, std::size_t length, int centre,
                               int octaves) {
  std::vector<Term> terms(num_terms);
  for (Term& term : terms) {
    term.weight = random.uniform();
    term.values.resize(length);
    for (float& value : term.values) {
      const int exponent = centre + static_cast<int>(random.below(static_cast<std::uint64_t>(octaves))) - octaves / 2;
      value = static_cast<float>(std::ldexp(2 * random.uniform() - 1, exponent));
    }
  }
  return terms;
}

// The header's definition, in other arithmetic: llrint and 128-bit integers, one rounding from long double.
float defined_sum(const std::vector<Term>& terms, std::size_t begin, std::size_t end, std::size_t i) {
  long double maximum = 0;
  for (const Term& term : terms) {
    for (std::size_t j = begin; j < end; ++j) {
      maximum = std::max(maximum, static_cast<long double>(std::abs(term.values[j] * term.weight)));
    }
  }
  if (maximum == 0) return 0;
  int exponent = -1100;
  while (std::ldexp(maximum, exponent + 1) * static_cast<long double>(terms.size()) < 0x1p62L) ++exponent;
  exponent = std::min(exponent, 1000);
  __int128 sum = 0;
  for (const Term& term : terms) {
    sum += std::llrint(std::ldexp(static_cast<double>(term.values[i]) * term.weight, exponent));
  }
  static_assert(std::numeric_limits<long double>::digits >= 63);
  return static_cast<float>(std::ldexp(static_cast<long double>(sum), -exponent));
}

TEST(ExactSum, IsWhatItsHeaderDefines) {
  const Communicator world = Communicator::world();
  RandomStream random({.seed = 31, .purpose = Purpose::test});
  for (int trial = 0; trial < 120; ++trial) {
    const std::size_t num_terms = 2 + random.below(12);
    const int centre = static_cast<int>(random.below(240)) - 120;
    const int octaves = 1 + static_cast<int>(random.below(70));
    const std::vector<Term> terms =
        random_terms(random, num_terms, 45, centre, std::min(octaves, 2 * (127 - std::abs(centre)) + 1));
    const std::vector<std::size_t> blocks{0, 7, 7, 40, 45};
    const std::vector<float> result = sum_over(world, terms, dealt_to(world.size()), blocks);
    for (std::size_t block = 0; block + 1 < blocks.size(); ++block) {
      for (std::size_t i = blocks[block]; i < blocks[block + 1]; ++i) {
        const float expected = defined_sum(terms, blocks[block], blocks[block + 1], i);
        ASSERT_EQ(std::bit_cast<std::uint32_t>(result[i]), std::bit_cast<std::uint32_t>(expected))
            << "trial " << trial << " entry " << i << ": " << result[i] << " and " << expected;
      }
    }
  }
}

TEST(ExactSum, StaysWithinItsErrorBound) {
  const Communicator world = Communicator::world();
  RandomStream random({.seed = 32, .purpose = Purpose::test});
  for (int trial = 0; trial < 50; ++trial) {
    const std::size_t num_terms = 2 + random.below(30);
    std::vector<Term> terms = random_terms(random, num_terms, 16, 0, 40);
    for (Term& term : terms) term.weight = static_cast<double>(random.below(1024)) / 1024;  // products are exact
    const std::vector<float> result = sum_over(world, terms, dealt_to(world.size()), {0, 16});
    long double maximum = 0;
    for (const Term& term : terms) {
      for (const float value : term.values)
        maximum = std::max(maximum, std::abs(static_cast<long double>(value) * term.weight));
    }
    for (std::size_t i = 0; i < 16; ++i) {
      long double exact = 0;
      for (const Term& term : terms) exact += static_cast<long double>(term.values[i]) * term.weight;
      const long double n = static_cast<long double>(num_terms);
      const long double half_ulp = std::abs(exact) * 0x1p-24L;
      EXPECT_LE(std::abs(static_cast<long double>(result[i]) - exact), maximum * n * n * 0x1p-62L + half_ulp * 1.0001L);
    }
  }
}

TEST(ExactSum, DoesNotDependOnOrderPlacementOrRanks) {
  const Communicator world = Communicator::world();
  const Communicator self = alone();
  RandomStream random({.seed = 33, .purpose = Purpose::test});
  std::uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<Term> terms = random_terms(random, 10, 33, 0, 200);
    const std::vector<std::size_t> blocks{0, 1, 20, 33};
    const Bits witness = bits_of(sum_over(self, terms, dealt_to(1), blocks));
    for (const std::uint32_t bits : witness) hash = (hash ^ bits) * 1099511628211u;
    for (int placement = 0; placement < 4; ++placement) {
      std::vector<int> ranks(terms.size());
      for (int& rank : ranks) rank = static_cast<int>(random.below(60)) % world.size();
      const Owner owner = [&](std::size_t term) { return ranks[term]; };
      EXPECT_EQ(bits_of(sum_over(world, terms, owner, blocks)), witness);
      std::vector<Term> shuffled;
      for (const std::uint32_t i : random.permutation(10)) shuffled.push_back(terms[i]);
      terms = shuffled;
    }
    EXPECT_EQ(bits_of(sum_over(
                  world, terms, [](std::size_t) { return 0; }, blocks)),
              witness);
  }
  EXPECT_EQ(hash, 2405024146258180981u);  // a recorded value: the same for every number of ranks and on every machine
}

TEST(ExactSum, OneTermIsItselfBitForBit) {
  const Communicator world = Communicator::world();
  RandomStream random({.seed = 34, .purpose = Purpose::test});
  Term term;
  term.values = {0.0f, -0.0f, FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN, -FLT_TRUE_MIN, 1.0f, 0.1f};
  while (term.values.size() < 1000) term.values.push_back(random_float(random));
  const std::vector<std::size_t> blocks{0, 500, 1000};
  for (int owner = 0; owner < world.size(); ++owner) {
    const auto here = [&](std::size_t) { return owner; };
    EXPECT_EQ(bits_of(sum_over(world, {term}, here, blocks)), bits_of(term.values));
    // The same where more were announced than came.
    ExactSum sum(blocks, 5);
    EXPECT_EQ(bits_of(sum_over(world, sum, {term}, here, 1000)), bits_of(term.values));
  }
  Term weighted = term;
  weighted.weight = 0.3;
  std::vector<float> expected;
  for (const float value : term.values) expected.push_back(static_cast<float>(value * 0.3));
  EXPECT_EQ(bits_of(sum_over(
                world, {weighted}, [](std::size_t) { return 0; }, blocks)),
            bits_of(expected));
}

// Through double and then to float, the first of these would fall to 1: halfway, and then to even.
TEST(ExactSum, RoundsOnce) {
  const float tiny = 0x1p-60f;
  EXPECT_EQ(sum_of({{1.0f, 1}, {0x1p-24f, 1}, {tiny, 1}}), 1.0f + 0x1p-23f);
  EXPECT_EQ(sum_of({{1.0f, 1}, {0x1p-24f, 1}, {-tiny, 1}}), 1.0f);
  EXPECT_EQ(sum_of({{1.0f, 1}, {0x1p-24f, 1}, {0.0f, 1}}), 1.0f);
  EXPECT_EQ(sum_of({{-1.0f, 1}, {-0x1p-24f, 1}, {-tiny, 1}}), -1.0f - 0x1p-23f);
  EXPECT_EQ(sum_of({{-1.0f, 1}, {-0x1p-24f, 1}, {tiny, 1}}), -1.0f);
  EXPECT_EQ(sum_of({{1.0f + 0x1p-23f, 1}, {0x1p-24f, 1}, {0.0f, 1}}), 1.0f + 0x1p-22f);
  EXPECT_EQ(sum_of({{1.0f + 0x1p-23f, 1}, {0x1p-24f, 1}, {-tiny, 1}}), 1.0f + 0x1p-23f);
  EXPECT_EQ(sum_of({{1.0f, 1}, {-0x1p-25f, 1}, {-tiny, 1}}), 1.0f - 0x1p-24f);
  EXPECT_EQ(sum_of({{1.0f, 1}, {-0x1p-25f, 1}, {tiny, 1}}), 1.0f);
}

TEST(ExactSum, CancelsExactly) {
  EXPECT_EQ(sum_of({{1e10f, 1}, {1.0f, 1}, {-1e10f, 1}}), 1.0f);
  EXPECT_EQ(sum_of({{0.1f, 0.5}, {0.1f, -0.5}}), 0.0f);
  EXPECT_FALSE(std::signbit(sum_of({{-0.0f, 1}, {-0.0f, 1}})));
}

TEST(ExactSum, ReachesFromDenormalToHuge) {
  const float least = FLT_TRUE_MIN;
  EXPECT_EQ(sum_of({{least, 1}, {least, 1}, {least, 1}}), 3 * least);
  EXPECT_EQ(sum_of({{least, 0.5}, {least, 0.5}}), least);
  EXPECT_EQ(sum_of({{least, 0.5}, {2 * least, 0.5}}), 2 * least);  // 1.5, halfway, to even
  EXPECT_EQ(sum_of({{least, 0.5}, {4 * least, 0.5}}), 2 * least);  // 2.5, likewise
  EXPECT_EQ(sum_of({{least, 0.25}, {least, 0.125}}), 0.0f);
  EXPECT_EQ(sum_of({{FLT_MIN, 1}, {-least, 1}}), FLT_MIN - least);
  EXPECT_EQ(sum_of({{least, 1e-300}, {least, 1e-300}}), 0.0f);
  EXPECT_EQ(sum_of({{FLT_MAX, 1e-290}, {FLT_MAX, 1e-290}}), 0.0f);
  EXPECT_EQ(sum_of({{1.0f, 1e-307}, {0.0f, 1e-307}}), 0.0f);  // 2^s would be infinite
  EXPECT_EQ(sum_of({{FLT_MAX, 0.5}, {FLT_MAX, 0.5}}), FLT_MAX);
  EXPECT_EQ(sum_of({{-FLT_MAX, 0.75}, {-FLT_MAX, 0.25}}), -FLT_MAX);
  EXPECT_EQ(sum_of({{FLT_MAX, 1}, {FLT_MAX, 1}, {-FLT_MAX, 1}}), FLT_MAX);
  EXPECT_EQ(sum_of({{FLT_MAX, 1}, {FLT_MAX, 1}}), std::numeric_limits<float>::infinity());
  EXPECT_EQ(sum_of({{1.0f, 1e300}, {-1.0f, 1e300}, {1.0f, 1}}), 0.0f);
  EXPECT_EQ(sum_of({{least, 0x1p149}, {1.0f, 1}}), 2.0f);
}

TEST(ExactSum, BlocksHaveScalesOfTheirOwn) {
  const Communicator world = Communicator::world();
  const std::vector<Term> terms{{{0.0f, -0.0f, 1e30f, 1e-30f}, 0.5}, {{0.0f, 0.0f, 1e30f, 1e-30f}, 0.5}};
  const auto owner = dealt_to(world.size());
  EXPECT_EQ(sum_over(world, terms, owner, {0, 2, 3, 4}), (std::vector<float>{0, 0, 1e30f, 1e-30f}));
  EXPECT_EQ(sum_over(world, terms, owner, {0, 2, 4}), (std::vector<float>{0, 0, 1e30f, 0}));
}

TEST(ExactSum, RefusesWhatIsNotFinite) {
  const Communicator world = Communicator::world();
  const Term good{{1.0f, 2.0f, 3.0f}, 0.5};
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {infinity, -infinity, nan, -nan, std::numeric_limits<float>::signaling_NaN()}) {
    for (std::size_t place = 0; place < 3; ++place) {
      ExactSum sum({0, 1, 3}, 3);
      std::vector<float> values{100.0f, 100.0f, 100.0f};
      values[place] = bad;
      EXPECT_FALSE(sum.observe(values, 1));
      EXPECT_FALSE(sum.observe(values, 0));
      // What was refused leaves no trace, not even in the scales: 2^-60 still counts beside 1.
      const std::vector<Term> terms{
          {{1.0f, 1.0f, 1.0f}, 1}, {{0x1p-24f, 0x1p-24f, 0x1p-24f}, 1}, {{0x1p-60f, 0, 0}, 1}};
      const std::vector<float> result = sum_over(world, sum, terms, dealt_to(world.size()), 3);
      EXPECT_EQ(result, (std::vector<float>{1.0f + 0x1p-23f, 1.0f, 1.0f}));
    }
  }
  ExactSum sum({0, 3}, 1);
  EXPECT_FALSE(sum.observe(good.values, nan));
  EXPECT_FALSE(sum.observe(good.values, infinity));
  EXPECT_FALSE(sum.observe(std::vector<float>{FLT_MAX, 0, 0}, 1e300));
  EXPECT_EQ(sum_over(world, sum, {}, dealt_to(1), 3), (std::vector<float>{0, 0, 0}));
}

TEST(ExactSum, IsAsNewAfterReduce) {
  const Communicator world = Communicator::world();
  RandomStream random({.seed = 35, .purpose = Purpose::test});
  const std::vector<Term> large = random_terms(random, 4, 10, 20, 5);
  const std::vector<Term> small = random_terms(random, 4, 10, -20, 5);
  ExactSum sum({0, 10}, 4);
  const auto owner = dealt_to(world.size());
  const Bits first = bits_of(sum_over(world, sum, large, owner, 10));
  EXPECT_EQ(bits_of(sum_over(world, sum, small, owner, 10)), bits_of(sum_over(world, small, owner, {0, 10})));
  EXPECT_EQ(bits_of(sum_over(world, sum, {large[0]}, owner, 10)), bits_of(sum_over(world, {large[0]}, owner, {0, 10})));
  EXPECT_EQ(bits_of(sum_over(world, sum, large, owner, 10)), first);
}

TEST(ExactSum, HoldsItsCallersToTheContract) {
  const Communicator self = alone();
  EXPECT_CONTRACT_VIOLATION(ExactSum({1, 3}, 1), "begin with 0");
  EXPECT_CONTRACT_VIOLATION(ExactSum({0, 3, 2}, 1), "begin with 0");
  const std::vector<float> ones{1.0f, 1.0f};
  const std::vector<float> twos{2.0f, 2.0f};
  std::vector<float> result(2);
  ExactSum sum({0, 2}, 2);
  EXPECT_CONTRACT_VIOLATION(sum.observe(std::vector<float>{1.0f}, 1), "length");
  EXPECT_CONTRACT_VIOLATION(sum.add(ones, 1), "after agree");
  EXPECT_TRUE(sum.observe(ones, 1));
  EXPECT_TRUE(sum.observe(ones, 1));
  sum.agree(self);
  EXPECT_CONTRACT_VIOLATION(sum.observe(ones, 1), "before agree");
  EXPECT_CONTRACT_VIOLATION(sum.add(twos, 1), "not observed");
  EXPECT_CONTRACT_VIOLATION(sum.add(std::vector<float>{NAN, 0.0f}, 1), "not observed");
  sum.add(ones, 1);
  EXPECT_CONTRACT_VIOLATION(sum.reduce(self, result), "added once");
  sum.add(ones, 1);
  EXPECT_CONTRACT_VIOLATION(sum.add(ones, 1), "not observed");
  sum.reduce(self, result);
  EXPECT_EQ(result, twos);

  ExactSum crowded({0, 2}, 1);
  crowded.observe(ones, 1);
  crowded.observe(ones, 1);
  EXPECT_CONTRACT_VIOLATION(crowded.agree(self), "more contributions");
}

TEST(FastSum, AddsInFloat) {
  const Communicator world = Communicator::world();
  FastSum sum(3);
  for (int repeat = 0; repeat < 2; ++repeat) {
    sum.add(std::vector<float>{1.0f, 2.0f, -4.0f}, 0.5);
    sum.add(std::vector<float>{static_cast<float>(world.rank()), 0.0f, 0.0f}, 1);
    std::vector<float> result(3);
    sum.reduce(world, result);
    const auto n = static_cast<float>(world.size());
    EXPECT_EQ(result, (std::vector<float>{n * 0.5f + n * (n - 1) / 2, n, -2 * n}));
  }
}

}  // namespace
}  // namespace fedpdpo::test
