// Philox against its published vectors, streams against an independent implementation, distributions against their
// closed forms (Kolmogorov-Smirnov, moments). Seeds are fixed, so nothing here is left to chance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "fedpdpo/core/random.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

RandomStream stream(std::uint64_t seed) { return RandomStream({.seed = seed}); }

template <class Draw>
std::vector<double> sample(std::size_t count, Draw draw) {
  std::vector<double> values(count);
  for (double& value : values) value = draw();
  return values;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double variance(const std::vector<double>& values) {
  const double center = mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - center) * (value - center);
  return sum / static_cast<double>(values.size());
}

// sqrt(n) times the largest distance of the empirical distribution from `cdf`; above 1.95 once in a thousand.
template <class Cdf>
double kolmogorov_smirnov(std::vector<double> values, Cdf cdf) {
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  double distance = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double expected = cdf(values[i]);
    distance = std::max({distance, std::abs(expected - static_cast<double>(i) / n),
                         std::abs(expected - static_cast<double>(i + 1) / n)});
  }
  return std::sqrt(n) * distance;
}

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Results of finished runs depend on these numbers: computed once by a separate implementation.
TEST(RandomStream, NumbersAreFixedForEver) {
  EXPECT_EQ(philox_key(0x0123456789abcdef, Purpose::partition), (PhiloxKey{0x87f33669, 0xaad018e7}));
  RandomStream numbers(
      {.seed = 0x0123456789abcdef, .purpose = Purpose::partition, .client = 5, .round = 7, .step = 11});
  for (const std::uint32_t expected :
       {0x1421f44cu, 0x83e5b04du, 0x600bc5a5u, 0x801dad83u, 0x31e73137u, 0x03eee3eau, 0x46b6e754u, 0x24dc65d2u})
    EXPECT_EQ(numbers.next_u32(), expected);
}

TEST(RandomStream, SameNameSameNumbers) {
  const StreamId id{.seed = 3, .purpose = Purpose::batches, .client = 1, .round = 2, .step = 4};
  RandomStream a(id), b(id);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.next_u32(), b.next_u32());
}

TEST(RandomStream, EveryPartOfTheNameMatters) {
  const StreamId base{.seed = 1, .purpose = Purpose::batches, .client = 2, .round = 3, .step = 4};
  std::vector<StreamId> ids(7, base);
  ids[1].seed = 2;
  ids[2].seed = base.seed + (std::uint64_t{1} << 32);
  ids[3].purpose = Purpose::dropout;
  ids[4].client = 3;
  ids[5].round = 4;
  ids[6].step = 5;
  std::set<std::uint32_t> seen;
  for (const StreamId& id : ids) {
    RandomStream numbers(id);
    for (int i = 0; i < 64; ++i) seen.insert(numbers.next_u32());
  }
  EXPECT_EQ(seen.size(), ids.size() * 64);  // a shared or shifted stream would repeat dozens
}

TEST(RandomStream, UniformIsUniformIn0To1) {
  RandomStream numbers = stream(1);
  const auto values = sample(200000, [&] { return numbers.uniform(); });
  EXPECT_GE(*std::min_element(values.begin(), values.end()), 0.0);
  EXPECT_LT(*std::max_element(values.begin(), values.end()), 1.0);
  EXPECT_LT(kolmogorov_smirnov(values, [](double x) { return x; }), 1.95);
  // 53 bits: the lowest ones are in use.
  EXPECT_TRUE(std::any_of(values.begin(), values.end(), [](double x) { return std::fmod(x * 0x1p53, 2.0) == 1; }));
}

TEST(RandomStream, BelowStaysBelowAndIsUniform) {
  RandomStream numbers = stream(2);
  std::array<int, 7> counts{};
  constexpr int draws = 70000;
  for (int i = 0; i < draws; ++i) ++counts.at(numbers.below(7));
  double chi_square = 0;
  for (const int count : counts) chi_square += (count - draws / 7.0) * (count - draws / 7.0) / (draws / 7.0);
  EXPECT_LT(chi_square, 22.5);  // 6 degrees of freedom, once in a thousand
  EXPECT_EQ(numbers.below(1), 0u);
  EXPECT_CONTRACT_VIOLATION(numbers.below(0), "below");
}

// Without the rejection of 64-bit draws a third of these results would come half of the time.
TEST(RandomStream, BelowHasNoBiasForHugeBounds) {
  RandomStream numbers = stream(3);
  constexpr std::uint64_t bound = std::uint64_t{3} << 62;
  std::array<int, 3> counts{};
  for (int i = 0; i < 30000; ++i) {
    const std::uint64_t value = numbers.below(bound);
    ASSERT_LT(value, bound);
    ++counts[value % 3];
  }
  for (const int count : counts) EXPECT_NEAR(count, 10000, 330);  // 4 standard deviations
}

TEST(RandomStream, NormalIsStandardNormal) {
  RandomStream numbers = stream(4);
  const auto values = sample(200000, [&] { return numbers.normal(); });
  EXPECT_LT(kolmogorov_smirnov(values, [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }), 1.95);
  EXPECT_NEAR(mean(values), 0, 0.01);
  EXPECT_NEAR(variance(values), 1, 0.015);
}

TEST(RandomStream, NormalDrawsOfAPairAreIndependent) {
  RandomStream numbers = stream(5);
  double product = 0;
  constexpr int pairs = 100000;
  for (int i = 0; i < pairs; ++i) {
    const double first = numbers.normal();
    product += first * numbers.normal();
  }
  EXPECT_NEAR(product / pairs, 0, 0.013);
}

TEST(RandomStream, GammaHasItsClosedForms) {
  RandomStream numbers = stream(6);
  const auto draw = [&](double shape) { return sample(100000, [&] { return numbers.gamma(shape); }); };
  EXPECT_LT(kolmogorov_smirnov(draw(0.5), [](double x) { return std::erf(std::sqrt(x)); }), 1.95);
  EXPECT_LT(kolmogorov_smirnov(draw(1), [](double x) { return 1 - std::exp(-x); }), 1.95);
  EXPECT_LT(kolmogorov_smirnov(draw(2), [](double x) { return 1 - (1 + x) * std::exp(-x); }), 1.95);
}

TEST(RandomStream, GammaHasItsMoments) {
  for (const double shape : {0.05, 0.3, 1.5, 7.0, 1000.0}) {
    RandomStream numbers = stream(7);
    constexpr int count = 200000;
    const auto values = sample(count, [&] { return numbers.gamma(shape); });
    EXPECT_NEAR(mean(values), shape, 4 * std::sqrt(shape / count)) << shape;
    const double fourth = 3 * shape * shape + 6 * shape;  // central moment: for the spread of the variance
    EXPECT_NEAR(variance(values), shape, 4 * std::sqrt((fourth - shape * shape) / count)) << shape;
    EXPECT_GE(*std::min_element(values.begin(), values.end()), 0.0);
  }
}

TEST(RandomStream, GammaRefusesBadShapes) {
  RandomStream numbers = stream(8);
  EXPECT_CONTRACT_VIOLATION(numbers.gamma(0), "shape");
  EXPECT_CONTRACT_VIOLATION(numbers.gamma(-1), "shape");
  EXPECT_CONTRACT_VIOLATION(numbers.gamma(std::nan("")), "shape");
}

TEST(RandomStream, DirichletIsADistributionForEveryAlpha) {
  for (const double alpha : {1e-320, 1e-300, 1e-10, 1e-4, 0.01, 0.3, 1.0, 100.0, 1e12}) {
    RandomStream numbers = stream(9);
    for (int i = 0; i < 200; ++i) {
      const auto proportions = numbers.dirichlet(alpha, 10);
      ASSERT_EQ(proportions.size(), 10u);
      double sum = 0;
      for (const double value : proportions) {
        ASSERT_TRUE(value >= 0 && value <= 1) << alpha << ": " << value;
        sum += value;
      }
      ASSERT_NEAR(sum, 1, 1e-12) << alpha;
    }
  }
}

TEST(RandomStream, TinyAlphaGivesEachClientItsTurn) {
  RandomStream numbers = stream(10);
  std::map<std::size_t, int> winners;
  for (int i = 0; i < 3000; ++i) {
    const auto proportions = numbers.dirichlet(1e-8, 3);
    const auto largest = std::max_element(proportions.begin(), proportions.end());
    EXPECT_GT(*largest, 0.99);
    ++winners[static_cast<std::size_t>(largest - proportions.begin())];
  }
  for (std::size_t client = 0; client < 3; ++client) EXPECT_NEAR(winners[client], 1000, 104);  // 4 sd
}

TEST(RandomStream, HugeAlphaIsNearlyUniform) {
  RandomStream numbers = stream(11);
  for (const double value : numbers.dirichlet(1e10, 5)) EXPECT_NEAR(value, 0.2, 1e-4);
}

TEST(RandomStream, DirichletHasItsMoments) {
  for (const double alpha : {0.1, 0.3, 1.0, 5.0}) {
    RandomStream numbers = stream(12);
    constexpr int count = 50000;
    constexpr double n = 4;
    const auto first = sample(count, [&] { return numbers.dirichlet(alpha, 4)[0]; });
    const double expected = (1 / n) * (1 - 1 / n) / (n * alpha + 1);
    EXPECT_NEAR(mean(first), 1 / n, 4 * std::sqrt(expected / count)) << alpha;
    EXPECT_NEAR(variance(first), expected, 0.03 * expected) << alpha;
  }
}

// Dirichlet(1, 1) has uniform, Dirichlet(1/2, 1/2) arcsine marginals.
TEST(RandomStream, DirichletHasItsMarginals) {
  RandomStream numbers = stream(13);
  const auto flat = sample(50000, [&] { return numbers.dirichlet(1, 2)[1]; });
  EXPECT_LT(kolmogorov_smirnov(flat, [](double x) { return x; }), 1.95);
  const auto arcsine = sample(50000, [&] { return numbers.dirichlet(0.5, 2)[0]; });
  EXPECT_LT(kolmogorov_smirnov(arcsine, [](double x) { return 2 / M_PI * std::asin(std::sqrt(x)); }), 1.95);
}

TEST(RandomStream, DirichletOfOneIsCertain) {
  RandomStream numbers = stream(14);
  EXPECT_EQ(numbers.dirichlet(0.3, 1), std::vector<double>{1.0});
  EXPECT_CONTRACT_VIOLATION(numbers.dirichlet(0.3, 0), "dimension");
  EXPECT_CONTRACT_VIOLATION(numbers.dirichlet(0, 3), "alpha");
}

TEST(RandomStream, PermutationsArePermutations) {
  RandomStream numbers = stream(15);
  EXPECT_TRUE(numbers.permutation(0).empty());
  EXPECT_EQ(numbers.permutation(1), std::vector<std::uint32_t>{0});
  for (const std::uint32_t n : {2u, 10u, 1000u}) {
    auto order = numbers.permutation(n);
    std::sort(order.begin(), order.end());
    for (std::uint32_t i = 0; i < n; ++i) ASSERT_EQ(order[i], i);
  }
}

TEST(RandomStream, PermutationsAreEquallyLikely) {
  RandomStream numbers = stream(16);
  std::map<std::vector<std::uint32_t>, int> counts;
  constexpr int draws = 24000;
  for (int i = 0; i < draws; ++i) ++counts[numbers.permutation(4)];
  ASSERT_EQ(counts.size(), 24u);
  double chi_square = 0;
  for (const auto& [order, count] : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 49.7);  // 23 degrees of freedom, once in a thousand
}

}  // namespace
}  // namespace fedpdpo
