// The accountant against a published one and against integrals (tests/golden/golden_privacy.py), clipping by hand, the
// noise's distribution (moments, Kolmogorov-Smirnov) and what it depends on. Seeds are fixed: nothing is left to
// chance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/privacy.hpp"
#include "fedpdpo/io/json.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

nlohmann::json golden() { return read_json(std::string(FEDPDPO_SOURCE_DIR) + "/tests/golden/golden_privacy.json"); }

RdpAccountant accountant_of(const nlohmann::json& point) {
  RdpAccountant accountant(point["sampling_rate"], point["noise_multiplier"]);
  accountant.step(point["steps"]);
  return accountant;
}

double distance(std::span<const float> x, std::span<const float> y) {
  double squared = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = static_cast<double>(y[i]) - x[i];
    squared += difference * difference;
  }
  return std::sqrt(squared);
}

std::vector<float> noise(std::size_t size, double deviation, std::uint64_t seed, int round, int group) {
  std::vector<float> values(size);
  add_noise(values, deviation, seed, round, group);
  return values;
}

TEST(Accountant, EpsilonIsThatOfTheExactDivergences) {
  const nlohmann::json json = golden();
  ASSERT_GE(json["epsilons"].size(), 30u);
  for (const nlohmann::json& point : json["epsilons"]) {
    const double exact = point["exact"];
    EXPECT_NEAR(accountant_of(point).epsilon(point["delta"]), exact, 1e-9 * exact) << point;
  }
}

/// dp-accounting's series is exact for whole orders and an upper bound for fractional ones.
TEST(Accountant, AgreesWithThePublishedAccountant) {
  int num_whole = 0, num_close = 0;
  const nlohmann::json json = golden();
  for (const nlohmann::json& point : json["epsilons"]) {
    const RdpAccountant accountant = accountant_of(point);
    const double epsilon = accountant.epsilon(point["delta"]), published = point["epsilon"];
    EXPECT_LE(epsilon, published * (1 + 1e-9)) << point;
    EXPECT_GE(epsilon, published * 0.85) << point;
    if (std::abs(epsilon - published) <= 1e-6 * published) ++num_close;
    const double order = accountant.best_order(point["delta"]);
    // Without sampling there is no series.
    if (order != std::floor(order) && point["sampling_rate"] < 1) continue;
    ++num_whole;
    EXPECT_NEAR(epsilon, published, 1e-9 * published) << point;
    EXPECT_EQ(order, point["order"]) << point;
  }
  EXPECT_EQ(num_whole, 12);
  EXPECT_EQ(num_close, 17);
}

TEST(Accountant, DivergencesAreTheIntegrals) {
  const nlohmann::json json = golden();
  ASSERT_GE(json["divergences"].size(), 15u);
  for (const nlohmann::json& point : json["divergences"]) {
    const double order = point["order"], expected = point["divergence"];
    EXPECT_NEAR(gaussian_rdp(point["sampling_rate"], point["noise_multiplier"], order), expected, 1e-13 / (order - 1))
        << point;
  }
}

/// 60000 examples, batches of 250, sigma 1.3, 15 epochs: 1.18 by the conversion of 2017, 0.94 by that of 2020.
TEST(Accountant, TutorialValue) {
  const nlohmann::json point = golden()["tutorial"];
  const RdpAccountant accountant = accountant_of(point);
  EXPECT_EQ(accountant.num_steps(), 3600);
  EXPECT_NEAR(accountant.epsilon_classic(1e-5), 1.18, 0.005);
  EXPECT_NEAR(accountant.epsilon_classic(1e-5), point["classic"], 1e-9);
  EXPECT_NEAR(accountant.epsilon(1e-5), point["epsilon"], 1e-9);
  EXPECT_NEAR(accountant.epsilon(1e-5), 0.9422, 5e-5);
}

/// Whole and fractional orders are two formulas of one continuous function.
TEST(Accountant, WholeAndFractionalOrdersMeet) {
  for (double q : {0.01, 0.3, 0.95})
    for (double sigma : {0.6, 2.0})
      for (double order : {2.0, 5.0, 10.0}) {
        const double at = gaussian_rdp(q, sigma, order);
        const double around = (gaussian_rdp(q, sigma, order - 1e-4) + gaussian_rdp(q, sigma, order + 1e-4)) / 2;
        EXPECT_NEAR(around / at, 1, 1e-6) << q << ' ' << sigma << ' ' << order;
      }
}

TEST(Accountant, ClosedForms) {
  for (double order : {1.1, 2.0, 3.7, 64.0}) {
    EXPECT_DOUBLE_EQ(gaussian_rdp(1, 2, order), order / 8);
    EXPECT_EQ(gaussian_rdp(0, 2, order), 0);
    EXPECT_EQ(gaussian_rdp(0.1, 0, order), infinity);
    EXPECT_EQ(gaussian_rdp(0.1, 1e-200, order), infinity);
    EXPECT_GE(gaussian_rdp(0.1, 1e6, order), 0);
    EXPECT_LE(gaussian_rdp(0.1, 1e6, order), 1e-12);
  }
  // A_2 = 1 + q^2 (exp(1 / sigma^2) - 1)
  EXPECT_NEAR(gaussian_rdp(0.25, 0.7, 2), std::log1p(0.0625 * std::expm1(1 / 0.49)), 1e-14);
}

TEST(Accountant, StepsAddUpAndMoreOfThemCostMore) {
  RdpAccountant one(0.1, 1), two(0.1, 1);
  EXPECT_EQ(one.epsilon(1e-5), 0) << "no step costs nothing";
  double last = 0;
  for (int i = 0; i < 50; ++i) {
    one.step();
    EXPECT_GT(one.epsilon(1e-5), last);
    last = one.epsilon(1e-5);
  }
  two.step(20);
  two.step(30);
  EXPECT_EQ(two.epsilon(1e-5), last);
  EXPECT_GT(two.epsilon(1e-7), last);
  EXPECT_GE(two.epsilon(0.999), 0);
}

TEST(Accountant, WithoutNoiseEpsilonIsInfinite) {
  RdpAccountant accountant(0.1, 0);
  EXPECT_EQ(accountant.epsilon(1e-5), 0);
  accountant.step();
  EXPECT_EQ(accountant.epsilon(1e-5), infinity);
  EXPECT_EQ(accountant.epsilon_classic(1e-5), infinity);
}

TEST(Accountant, RefusesWhatIsNoMechanism) {
  EXPECT_CONTRACT_VIOLATION(RdpAccountant(1.5, 1), "sampling rate");
  EXPECT_CONTRACT_VIOLATION(RdpAccountant(0.5, -1), "noise multiplier");
  EXPECT_CONTRACT_VIOLATION(RdpAccountant(0.5, 1).epsilon(0), "delta");
}

/// D = (3, 0, -4), norm 5.
TEST(ClipUpdate, ByHand) {
  const std::vector<float> base{1, 2, 3}, start{4, 2, -1};
  std::vector<float> values = start;
  EXPECT_EQ(clip_update(base, values, 2.5), 5);
  EXPECT_EQ(values, (std::vector<float>{2.5, 2, 1}));
  EXPECT_EQ(clip_update(base, values, 2.5), 2.5);
  EXPECT_EQ(values, (std::vector<float>{2.5, 2, 1})) << "within the norm nothing changes";
  for (double clip : {5.0, 100.0, 0.0}) {
    values = start;
    EXPECT_EQ(clip_update(base, values, clip), 5);
    EXPECT_EQ(values, start) << clip;
  }
}

TEST(ClipUpdate, NeverExceedsTheClip) {
  RandomStream stream({5, Purpose::test, 0, 0, 0});
  for (double size : {1e-6, 1.0, 1e4}) {
    std::vector<float> base(4096), values(base.size());
    for (std::size_t i = 0; i < base.size(); ++i) {
      base[i] = static_cast<float>(100 * stream.normal());
      values[i] = static_cast<float>(base[i] + size * stream.normal());
    }
    const double before = distance(base, values), clip = before / 3;
    EXPECT_DOUBLE_EQ(clip_update(base, values, clip), before);
    EXPECT_LE(distance(base, values), clip * (1 + 4096 * 0x1p-52));
    if (size >= 1) {
      EXPECT_GE(distance(base, values), clip * (1 - 1e-4));
    }
  }
}

TEST(ClipUpdate, LeavesWhatIsNotFinite) {
  const std::vector<float> base{0, 0};
  std::vector<float> values{std::numeric_limits<float>::quiet_NaN(), 8};
  EXPECT_TRUE(std::isnan(clip_update(base, values, 1)));
  EXPECT_EQ(values[1], 8);
  values[0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(clip_update(base, values, 1), infinity);
  EXPECT_EQ(values[1], 8);
}

/// 1e5 draws: the mean's standard deviation is 0.0032, the variance's 0.0045, and Kolmogorov's 0.1 % point 0.0062.
TEST(Noise, IsNormal) {
  constexpr std::size_t count = 100000;
  constexpr double deviation = 0.25;
  std::vector<float> values = noise(count, deviation, 11, 3, 1);
  double sum = 0, squares = 0, neighbours = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double z = values[i] / deviation;
    sum += z;
    squares += z * z;
    if (i > 0) neighbours += z * values[i - 1] / deviation;
  }
  EXPECT_NEAR(sum / count, 0, 0.012);
  EXPECT_NEAR(squares / count, 1, 0.018);
  EXPECT_NEAR(neighbours / count, 0, 0.012);
  std::sort(values.begin(), values.end());
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double below = 0.5 * std::erfc(-values[i] / deviation / std::numbers::sqrt2);
    largest = std::max({largest, std::abs(below - static_cast<double>(i) / count),
                        std::abs(below - static_cast<double>(i + 1) / count)});
  }
  EXPECT_LT(largest, 0.0062);
  EXPECT_GT(values.back(), 3.5 * deviation);
}

TEST(Noise, FollowsSeedRoundAndGroupOnly) {
  const std::vector<float> once = noise(100, 1, 1, 2, 3);
  EXPECT_EQ(noise(100, 1, 1, 2, 3), once);
  for (const std::vector<float>& other : {noise(100, 1, 2, 2, 3), noise(100, 1, 1, 3, 3), noise(100, 1, 1, 2, 4),
                                          noise(100, 1, 1, 3, 2), noise(100, 1, 1ull << 32 | 1, 2, 3)}) {
    const double product = std::inner_product(once.begin(), once.end(), other.begin(), 0.0) / 100;
    EXPECT_LT(std::abs(product), 0.4) << "correlated";
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT_NE(other[i], once[i]);
  }
}

TEST(Noise, IsAddedAndScaled) {
  const std::vector<float> unit = noise(7, 1, 1, 1, 0);
  std::vector<float> values(7, 3);
  add_noise(values, 0.5, 1, 1, 0);
  for (std::size_t i = 0; i < 7; ++i) EXPECT_NEAR(values[i], 3 + 0.5 * unit[i], 1e-6);
  const std::vector<float> before = values;
  add_noise(values, 0, 1, 1, 0);
  EXPECT_EQ(values, before);
}

}  // namespace
}  // namespace fedpdpo::test
