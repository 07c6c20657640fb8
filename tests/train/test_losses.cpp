// Every loss against the golden table (values and derivatives, double precision) and against finite differences, with
// and without reward terms.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/train/losses.hpp"
#include "support/golden.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

nlohmann::json golden() { return read_json(golden_folder() / "golden_losses.json"); }

/// The options that a golden loss was computed with: a name of loss_names() and its variant.
LossOptions golden_options(const nlohmann::json& json, const std::string& name) {
  const nlohmann::json& o = json["options"];
  LossOptions options;
  options.kind = name == "pdpo" ? "dpo" : name.substr(0, name.find('_'));
  options.reference_free = name.find("_reference_free") != std::string::npos;
  options.length_normalize = name.find("_length_normalized") != std::string::npos;
  options.beta = o["beta"];
  options.lambda = name == "pdpo" ? o["lambda"].get<double>() : 0;
  options.mu = name == "pdpo" ? o["mu"].get<double>() : 0;
  options.label_smoothing = o["label_smoothing"];
  if (name == "simpo") {
    options.beta = o["simpo_beta"];
    options.simpo_gamma = o["simpo_gamma_beta_ratio"];
  }
  if (name == "orpo") options.beta = o["orpo_lambda"];
  if (name == "kto_weighted") {
    options.kto_chosen_weight = o["kto_chosen_weight"];
    options.kto_rejected_weight = o["kto_rejected_weight"];
  }
  return options;
}

PairScores golden_pair(const nlohmann::json& json, std::size_t i) {
  const nlohmann::json& p = json["pairs"];
  return {p["logp_chosen"][i],   p["logp_rejected"][i],   p["ref_chosen"][i],    p["ref_rejected"][i],
          p["reward_chosen"][i], p["reward_rejected"][i], p["length_chosen"][i], p["length_rejected"][i]};
}

class GoldenLoss : public testing::TestWithParam<std::string> {};

/// 1e-12 relative. The table's pairs are of order one to a thousand, so where the expected number is 0 it must be 0.
TEST_P(GoldenLoss, ValuesAndDerivatives) {
  const nlohmann::json json = golden();
  const LossOptions options = golden_options(json, GetParam());
  const nlohmann::json& expected = json["losses"][GetParam()];
  ASSERT_EQ(expected["value"].size(), 7u);
  const auto near = [](double found, const nlohmann::json& number, const char* what) {
    const double e = number;
    EXPECT_LE(std::abs(found - e), 1e-12 * std::abs(e)) << what << ": " << found << " for " << e;
  };
  BatchStatistics statistics;
  if (loss_needs_statistics(options.kind)) {
    std::vector<PairScores> batch;
    for (std::size_t i = 0; i < expected["batch"].get<std::size_t>(); ++i) batch.push_back(golden_pair(json, i));
    statistics = batch_statistics(options, batch);
    near(statistics.kl_chosen, expected["kl"][0], "chosen KL");
    near(statistics.kl_rejected, expected["kl"][1], "rejected KL");
  }
  for (std::size_t i = 0; i < 7; ++i) {
    SCOPED_TRACE("pair " + std::to_string(i));
    const PairLoss found = preference_loss(options, golden_pair(json, i), statistics);
    near(found.loss, expected["value"][i], "loss");
    near(found.d_log_prob_chosen, expected["d_logp_chosen"][i], "by chosen");
    near(found.d_log_prob_rejected, expected["d_logp_rejected"][i], "by rejected");
    near(found.d_reward_chosen, expected["d_reward_chosen"][i], "by the chosen's reward");
    near(found.d_reward_rejected, expected["d_reward_rejected"][i], "by the rejected's reward");
  }
}

/// All names, each with the variants that it has.
std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (std::string_view name : loss_names()) {
    const std::string kind(name);
    names.push_back(kind);
    if (loss_needs_reference(kind)) names.push_back(kind + "_reference_free");
    if (!loss_is_of_margin(kind)) continue;
    names.push_back(kind + "_length_normalized");
    names.push_back(kind + "_reference_free_length_normalized");
  }
  return names;
}

std::vector<std::string> golden_names() {
  std::vector<std::string> names = variants();
  names.insert(names.end(), {"kto_weighted", "pdpo"});
  return names;
}

INSTANTIATE_TEST_SUITE_P(Losses, GoldenLoss, testing::ValuesIn(golden_names()), [](const auto& i) { return i.param; });

TEST(LossNames, AreThoseWithGoldenValues) {
  const nlohmann::json json = golden();
  EXPECT_EQ(loss_names().size(), 10u);
  EXPECT_EQ(golden_names().size(), 10u + 6 + 2 * 4 + 2);
  for (const std::string& name : golden_names()) EXPECT_TRUE(json["losses"].contains(name)) << name;
  EXPECT_EQ(json["losses"].size(), golden_names().size() + 2) << "ipo_sum and sft_sum are of no loss here";
}

struct FiniteCase {
  std::string variant;
  double lambda, mu;
};

std::vector<FiniteCase> finite_cases() {
  std::vector<FiniteCase> cases;
  for (const std::string& variant : variants())
    for (const auto& [lambda, mu] : {std::pair{0.0, 0.0}, {1.0, 0.5}, {0.3, 2.0}, {0.7, 0.0}})
      cases.push_back({variant, lambda, mu});
  return cases;
}

class FiniteDifferences : public testing::TestWithParam<FiniteCase> {};

constexpr std::array scores_with_derivative{&PairScores::log_prob_chosen, &PairScores::log_prob_rejected,
                                            &PairScores::reward_chosen, &PairScores::reward_rejected};
constexpr std::array derivatives{&PairLoss::d_log_prob_chosen, &PairLoss::d_log_prob_rejected,
                                 &PairLoss::d_reward_chosen, &PairLoss::d_reward_rejected};

PairScores random_scores(RandomStream& random) {
  PairScores s;
  s.length_chosen = 1 + static_cast<int>(random.below(20));
  s.length_rejected = 1 + static_cast<int>(random.below(20));
  s.log_prob_chosen = -s.length_chosen * (0.2 + 3 * random.uniform());
  s.log_prob_rejected = -s.length_rejected * (0.2 + 3 * random.uniform());
  s.reference_chosen = s.log_prob_chosen + 4 * random.normal();
  s.reference_rejected = s.log_prob_rejected + 4 * random.normal();
  s.reward_chosen = random.normal();
  s.reward_rejected = random.normal();
  return s;
}

/// Central differences, step 1e-4: truncation about h^2 = 1e-8, rounding about 1e-16 / h = 1e-12, of the loss's size.
TEST_P(FiniteDifferences, OfEveryScore) {
  const std::string& name = GetParam().variant;
  LossOptions options;
  options.kind = name.substr(0, name.find('_'));
  options.reference_free = name.find("_reference_free") != std::string::npos;
  options.length_normalize = name.find("_length_normalized") != std::string::npos;
  options.lambda = GetParam().lambda;
  options.mu = GetParam().mu;
  options.beta = 0.3;
  options.kto_chosen_weight = 1.5;
  options.kto_rejected_weight = 0.8;
  const BatchStatistics statistics{0.4, 1.1};
  RandomStream random({.seed = 11, .purpose = Purpose::test});
  constexpr double h = 1e-4;
  double largest = 0;
  for (int trial = 0; trial < 40; ++trial) {
    const PairScores scores = random_scores(random);
    const PairLoss at = preference_loss(options, scores, statistics);
    if (options.kind == "hinge" && std::abs(at.margin - 1) < 0.01) continue;  // its kink
    for (std::size_t i = 0; i < derivatives.size(); ++i) {
      PairScores above = scores, below = scores;
      above.*scores_with_derivative[i] += h;
      below.*scores_with_derivative[i] -= h;
      const double slope =
          (preference_loss(options, above, statistics).loss - preference_loss(options, below, statistics).loss) /
          (2 * h);
      EXPECT_NEAR(at.*derivatives[i], slope, 1e-7 * (1 + std::abs(at.loss) + std::abs(slope)))
          << "derivative " << i << ", trial " << trial;
      largest = std::max(largest, std::abs(slope));
    }
  }
  EXPECT_GT(largest, 0.03) << "the derivatives were all but zero: nothing was tested";
}

INSTANTIATE_TEST_SUITE_P(Losses, FiniteDifferences, testing::ValuesIn(finite_cases()), [](const auto& i) {
  return i.param.variant + "_lambda" + std::to_string(static_cast<int>(10 * i.param.lambda)) + "_mu" +
         std::to_string(static_cast<int>(10 * i.param.mu));
});

TEST(Losses, MarginsAreThoseOfTheDesign) {
  PairScores s;
  s.log_prob_chosen = -10;
  s.reference_chosen = -12;
  s.log_prob_rejected = -20;
  s.reference_rejected = -15;
  s.reward_chosen = 0.5;
  s.reward_rejected = 2;
  LossOptions options;
  options.beta = 0.1;
  options.lambda = 0.4;
  for (const char* kind : {"dpo", "cdpo", "robust", "hinge", "ipo", "kto"}) {
    options.kind = kind;
    const PairLoss r = preference_loss(options, s);
    EXPECT_NEAR(r.margin_implicit, 0.1 * (2.0 + 5.0), 1e-15) << kind;
    EXPECT_NEAR(r.margin_explicit, -1.5, 1e-15) << kind;
    EXPECT_NEAR(r.margin, 0.7 - 0.4 * 1.5, 1e-15) << kind;
  }
  options.kind = "reward";
  EXPECT_DOUBLE_EQ(preference_loss(options, s).margin, -1.5);
}

TEST(Losses, MarginsAreThoseOfTheVariant) {
  PairScores s;
  s.log_prob_chosen = -10;
  s.reference_chosen = -12;
  s.length_chosen = 4;
  s.log_prob_rejected = -20;
  s.reference_rejected = -15;
  s.length_rejected = 5;
  LossOptions options;
  options.beta = 0.1;
  const auto margin = [&](const char* kind, bool reference_free, bool length_normalize) {
    options.kind = kind;
    options.reference_free = reference_free;
    options.length_normalize = length_normalize;
    return preference_loss(options, s).margin_implicit;
  };
  for (const char* kind : {"dpo", "cdpo", "robust", "hinge"}) {
    EXPECT_NEAR(margin(kind, true, false), 0.1 * (-10 + 20), 1e-15) << kind;
    EXPECT_NEAR(margin(kind, false, true), 0.1 * (2 / 4. + 5 / 5.), 1e-15) << kind;
    EXPECT_NEAR(margin(kind, true, true), 0.1 * (-10 / 4. + 20 / 5.), 1e-15) << kind;
  }
  for (const char* kind : {"ipo", "kto"}) EXPECT_NEAR(margin(kind, true, false), 0.1 * (-10 + 20), 1e-15) << kind;
}

/// ipo and kto know no explicit margin: the reward learns from its own term, whatever lambda is.
TEST(Losses, OfRatiosLeaveTheRewardToItsOwnTerm) {
  RandomStream random({.seed = 6, .purpose = Purpose::test});
  const PairScores scores = random_scores(random);
  const double m_e = scores.reward_chosen - scores.reward_rejected;
  for (const char* kind : {"ipo", "kto"}) {
    LossOptions options;
    options.kind = kind;
    options.lambda = options.mu = 0;
    const PairLoss without = preference_loss(options, scores);
    EXPECT_EQ(without.d_reward_chosen, 0) << kind;
    options.lambda = 0.8;
    options.mu = 0.5;
    const PairLoss with = preference_loss(options, scores);
    EXPECT_NEAR(with.loss, without.loss + 0.5 * std::log1p(std::exp(-m_e)), 1e-12 * with.loss) << kind;
    EXPECT_NEAR(with.d_reward_chosen, -0.5 / (1 + std::exp(m_e)), 1e-15) << kind;
    EXPECT_EQ(with.d_log_prob_chosen, without.d_log_prob_chosen) << kind;
    EXPECT_NEAR(with.margin, with.margin_implicit + 0.8 * m_e, 1e-15) << kind;
  }
}

TEST(BatchStatistics, AreMeanLogRatiosNotBelowZero) {
  PairScores a, b;
  a.log_prob_chosen = -3;
  a.reference_chosen = -5;
  a.log_prob_rejected = -8;
  a.reference_rejected = -6;
  b.log_prob_chosen = -4;
  b.reference_chosen = -5;
  b.log_prob_rejected = -2;
  b.reference_rejected = -3;
  LossOptions options;
  options.kind = "kto";
  const std::array both{a, b};
  EXPECT_EQ(batch_statistics(options, both).kl_chosen, 1.5);
  EXPECT_EQ(batch_statistics(options, both).kl_rejected, 0) << "the mean is -1/2";
  EXPECT_EQ(batch_statistics(options, std::span(&b, 1)).kl_rejected, 1);
  options.reference_free = true;
  EXPECT_EQ(batch_statistics(options, both).kl_chosen, 0);
  options.reference_free = false;
  EXPECT_EQ(batch_statistics(options, {}).kl_chosen, 0);
  a.log_prob_rejected = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(batch_statistics(options, std::span(&a, 1)).kl_rejected));
}

TEST(Losses, ReferenceIsUsedWhereTheNameSaysSo) {
  RandomStream random({.seed = 5, .purpose = Purpose::test});
  PairScores scores = random_scores(random);
  scores.reward_chosen = scores.reward_rejected = 0;
  scores.reference_chosen = scores.log_prob_chosen - 1;  // a margin at which hinge has a slope
  scores.reference_rejected = scores.log_prob_rejected;
  PairScores other = scores;
  other.reference_chosen -= 0.75;
  int with_reference = 0;
  for (std::string_view kind : loss_names()) {
    LossOptions options;
    options.kind = kind;
    const bool differs =
        preference_loss(options, scores).d_log_prob_chosen != preference_loss(options, other).d_log_prob_chosen ||
        preference_loss(options, scores).loss != preference_loss(options, other).loss;
    EXPECT_EQ(differs, loss_needs_reference(kind)) << kind;
    options.reference_free = true;
    EXPECT_EQ(preference_loss(options, scores).loss, preference_loss(options, other).loss) << kind;
    with_reference += loss_needs_reference(kind) ? 1 : 0;
  }
  EXPECT_EQ(with_reference, 6);
}

TEST(Losses, UnknownKindBreaksAContract) {
  LossOptions options;
  options.kind = "dppo";
  EXPECT_CONTRACT_VIOLATION(preference_loss(options, {}), "unknown loss dppo");
}

}  // namespace
}  // namespace fedpdpo::test
