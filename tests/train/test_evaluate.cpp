// evaluate(): means, ties, flipped pairs, the start of training, and bf16 weights.
#include <cstring>

#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

LossOptions dpo(double lambda, double mu) {
  LossOptions o;
  o.lambda = lambda;
  o.mu = mu;
  return o;
}

Evaluation evaluated(TrainerKit& kit, std::span<const ClientPair> pairs, const LossOptions& loss,
                     int micro_rows = 1024) {
  return kit.evaluate({0, pairs}, loss, micro_rows);
}

/// Log-probabilities and rewards of single pairs: evaluate() gives sums and means only.
PairScores scored(TrainerKit& kit, const ClientPair& pair) {
  const MemberPairs member{0, std::span(&pair.pair, 1)};
  PackedBatch batch;
  pack(kit.pairs, std::span(&member, 1), kit.policy.packing(), batch);
  PairScores scores;
  kit.policy.score(batch, kit.buffers.parameters(), std::span(&scores, 1));
  return scores;
}

TEST(Evaluate, IsTheMeanOverPairs) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(8, 4);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
  const LossOptions loss = dpo(0.7, 0.5);
  const Evaluation e = evaluated(kit, kit.train, loss);
  ASSERT_EQ(e.margin.size(), 8u);
  Evaluation sum;
  for (std::size_t i = 0; i < 8; ++i) {
    PairScores s = scored(kit, kit.train[i]);
    s.reference_chosen = kit.train[i].reference_chosen;
    s.reference_rejected = kit.train[i].reference_rejected;
    const double chosen = s.log_prob_chosen - s.reference_chosen, rejected = s.log_prob_rejected - s.reference_rejected;
    const double m_i = 0.1 * (chosen - rejected), m_e = s.reward_chosen - s.reward_rejected, m = m_i + 0.7 * m_e;
    EXPECT_NEAR(e.margin_implicit[i], m_i, 1e-9) << i;
    EXPECT_NEAR(e.margin_explicit[i], m_e, 1e-9) << i;
    EXPECT_NEAR(e.margin[i], m, 1e-9) << i;
    sum.loss += std::log1p(std::exp(-m)) + 0.5 * std::log1p(std::exp(-m_e));
    sum.accuracy += m > 0;
    sum.accuracy_implicit += m_i > 0;
    sum.accuracy_explicit += m_e > 0;
    sum.mean_margin += m;
    sum.mean_margin_implicit += m_i;
    sum.mean_margin_explicit += m_e;
    sum.log_prob_chosen += s.log_prob_chosen;
    sum.log_prob_rejected += s.log_prob_rejected;
    const RaggedTokens &w = pairs.files[0].chosen, &l = pairs.files[0].rejected;
    sum.kl_to_reference +=
        (chosen / static_cast<double>(w[i].size()) + rejected / static_cast<double>(l[i].size())) / 2;
  }
  for (double Evaluation::*field :
       {&Evaluation::loss, &Evaluation::accuracy, &Evaluation::accuracy_implicit, &Evaluation::accuracy_explicit,
        &Evaluation::mean_margin, &Evaluation::mean_margin_implicit, &Evaluation::mean_margin_explicit,
        &Evaluation::log_prob_chosen, &Evaluation::log_prob_rejected, &Evaluation::kl_to_reference})
    EXPECT_NEAR(e.*field, sum.*field / 8, 1e-9);
  EXPECT_GT(std::abs(e.mean_margin_implicit), 1e-3);
  EXPECT_GT(std::abs(e.mean_margin_explicit), 1e-3);
}

TEST(Evaluate, ATieCountsOneHalf) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 4);
  AdapterOptions lora;
  TrainerKit kit(model, pairs, lora, smooth_options(), 1, 1);
  std::vector<ClientPair> list = kit.train;
  for (std::size_t i = 0; i < 6; ++i) {
    // Against a reference that says what the policy says the margin is exactly 0; one nat makes it 0.1 or -0.1.
    const PairScores s = scored(kit, list[i]);
    list[i].reference_chosen = s.log_prob_chosen + (i < 1 ? -1 : (i < 3 ? 1 : 0));
    list[i].reference_rejected = s.log_prob_rejected;
  }
  const Evaluation e = evaluated(kit, list, dpo(0, 0));
  for (std::size_t i = 3; i < 6; ++i) EXPECT_EQ(e.margin[i], 0) << i;
  EXPECT_DOUBLE_EQ(e.accuracy, (1 + 3 * 0.5) / 6);
  EXPECT_DOUBLE_EQ(e.accuracy_implicit, (1 + 3 * 0.5) / 6);
  EXPECT_DOUBLE_EQ(e.accuracy_explicit, 0.5) << "without a reward head the explicit margin is a tie everywhere";
}

TEST(Evaluate, FlippedPairsNegateTheMargins) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(8, 4);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
  std::vector<ClientPair> flipped = kit.train;
  for (ClientPair& pair : flipped) {
    pair.pair.flipped = true;
    std::swap(pair.reference_chosen, pair.reference_rejected);
  }
  const Evaluation plain = evaluated(kit, kit.train, dpo(1, 0.5)), turned = evaluated(kit, flipped, dpo(1, 0.5));
  for (std::size_t i = 0; i < 8; ++i) {
    // Only sums in another order: 1e-5 absolute, of margins of order one.
    EXPECT_NEAR(turned.margin[i], -plain.margin[i], 1e-5) << i;
    EXPECT_NEAR(turned.margin_implicit[i], -plain.margin_implicit[i], 1e-5) << i;
    EXPECT_NEAR(turned.margin_explicit[i], -plain.margin_explicit[i], 1e-5) << i;
    EXPECT_GT(std::abs(plain.margin[i]), 1e-4) << i;
  }
  EXPECT_DOUBLE_EQ(turned.accuracy, 1 - plain.accuracy);
  // The reference of a pair that was scored flipped is the swapped one.
  const std::vector<ClientPair> scored_flipped = with_reference(model, pairs, true);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(scored_flipped[i].reference_chosen, kit.train[i].reference_rejected, 1e-5) << i;
    EXPECT_NEAR(scored_flipped[i].reference_rejected, kit.train[i].reference_chosen, 1e-5) << i;
  }
}

TEST(Evaluate, DoesNotDependOnTheCuts) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(8, 4);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
  const Evaluation whole = evaluated(kit, kit.train, dpo(1, 0.5), 100000);
  for (int micro_rows : {1, 40, 64}) {
    const Evaluation cut = evaluated(kit, kit.train, dpo(1, 0.5), micro_rows);
    EXPECT_EQ(cut.margin, whole.margin) << micro_rows;  // bit for bit: a row's numbers do not depend on its batch
    EXPECT_EQ(cut.loss, whole.loss);
  }
}

TEST(Evaluate, StopsWhereItIsAskedTo) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(8, 4);
  TrainerKit kit(model, pairs, AdapterOptions{}, smooth_options(), 1, 1);
  int asked = 0;
  const auto third_time = [&] { return ++asked == 3; };
  const EvaluatedModel one{0, kit.train};
  EXPECT_FALSE(kit.evaluate(std::span(&one, 1), dpo(0, 0), 1, Adapter::shared, third_time));
  EXPECT_EQ(asked, 3);
  EXPECT_TRUE(kit.evaluate(std::span(&one, 1), dpo(0, 0), 1, Adapter::shared, third_time));
  const Evaluation nothing = evaluated(kit, {}, dpo(0, 0), 64);
  EXPECT_EQ(nothing.loss, 0);
  EXPECT_TRUE(nothing.margin.empty());
}

/// Models of a cohort, of clients with more, fewer and no pairs: in passes of one pair, of some models' pairs, of all,
/// each has the numbers that it has alone, bit for bit.
TEST(Evaluate, ACohortsModelsSharePassesAndKeepTheirNumbers) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(12, 4);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 5, 5);
  const std::span<const ClientPair> all = kit.train;
  // Slots in an order that is not the pairs', pairs that two models share, and a LoRA rank of its own.
  const std::vector<EvaluatedModel> cohort{
      {3, all.first(5)}, {0, {}}, {4, all.subspan(5, 1), 2.0f}, {1, all.subspan(4)}, {2, {}}};
  int passes = 0;
  for (const int micro_rows : {1, 40, 90, 100000}) {
    int asked = 0;
    const auto count = [&] { return ++asked < 0; };
    const auto together = kit.evaluate(cohort, dpo(0.7, 0.5), micro_rows, Adapter::shared, count);
    ASSERT_TRUE(together.has_value());
    ASSERT_EQ(together->size(), cohort.size());
    passes = asked;
    for (std::size_t i = 0; i < cohort.size(); ++i) {
      const Evaluation alone = kit.evaluate(cohort[i], dpo(0.7, 0.5), 100000), &found = (*together)[i];
      EXPECT_EQ(found.margin, alone.margin) << i << ", rows " << micro_rows;
      EXPECT_EQ(found.margin_implicit, alone.margin_implicit) << i;
      EXPECT_EQ(found.margin_explicit, alone.margin_explicit) << i;
      EXPECT_EQ(found.loss, alone.loss) << i;
      EXPECT_EQ(found.kl_to_reference, alone.kl_to_reference) << i;
      EXPECT_EQ(found.margin.size(), cohort[i].pairs.size()) << i;
    }
  }
  EXPECT_EQ(passes, 1) << "all pairs of all models fit one pass";
  EXPECT_NE(kit.evaluate({0, all.first(5)}, dpo(0, 0)).margin, kit.evaluate({3, all.first(5)}, dpo(0, 0)).margin);
}

struct StartCase {
  std::string model, name;
  AdapterOptions adapter;
};

std::vector<StartCase> start_cases() {
  std::vector<StartCase> cases;
  for (const std::string& model : golden_models) {
    AdapterOptions lora, full = full_adapter(), lowrank = full_adapter();
    lowrank.head = HeadKind::lowrank;
    lowrank.bottleneck_kind = BottleneckKind::gated;
    lowrank.reward_pool = RewardPool::mean;
    cases.push_back({model, "lora", lora});
    cases.push_back({model, "full", full});
    cases.push_back({model, "lowrank_gated", lowrank});
  }
  return cases;
}

class StartOfTraining : public testing::TestWithParam<StartCase> {};

/// At its start the policy is the reference. The tie is exact, to the bit: B, U, Q, w and the gate are 0, and every
/// kernel gives a row the same bits in any batch. So the accuracy is one half exactly.
TEST_P(StartOfTraining, MarginIsZeroAndAccuracyOneHalf) {
  GoldenModel model(GetParam().model);
  const PairSet pairs = random_pairs(8, 4);
  TrainerKit kit(model, pairs, GetParam().adapter, smooth_options(), 1, 1, Start::initial);
  const double weight = GetParam().adapter.reward_head ? 1 : 0;
  const Evaluation e = evaluated(kit, kit.train, dpo(weight, weight / 2));
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(e.margin_implicit[i], 0, 1e-4) << i;
    EXPECT_EQ(e.margin_implicit[i], 0) << i;
    EXPECT_EQ(e.margin_explicit[i], 0) << i;
  }
  EXPECT_EQ(e.accuracy, 0.5);
  EXPECT_EQ(e.accuracy_implicit, 0.5);
  EXPECT_EQ(e.accuracy_explicit, 0.5);
  EXPECT_NEAR(e.loss, (1 + weight / 2) * std::log(2.0), 1e-12);
  EXPECT_EQ(e.kl_to_reference, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, StartOfTraining, testing::ValuesIn(start_cases()),
                         [](const auto& i) { return i.param.model + "_" + i.param.name; });

class Bf16 : public testing::TestWithParam<std::string> {};

/// bf16 keeps 8 bits: a weight is off by up to 2^-9 = 0.2 %, and so are the activations that enter each product.
/// Through two layers that is about 1 % of the logits' spread (order one) a token: 0.05 nat a token is several times
/// what is seen, and far below what a wrong product would make.
TEST_P(Bf16, LogProbabilitiesStayNearThoseOfFp32) {
  GoldenModel fp32(GetParam()), bf16(GetParam(), DType::bf16);
  ASSERT_EQ(bf16.weights.head.dtype, DType::bf16);
  const PairSet pairs = random_pairs(12, 4);
  const std::vector<ClientPair> exact = with_reference(fp32, pairs), rough = with_reference(bf16, pairs);
  double difference = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const auto w = static_cast<double>(pairs.files[0].chosen[i].size());
    const auto l = static_cast<double>(pairs.files[0].rejected[i].size());
    EXPECT_NEAR(rough[i].reference_chosen, exact[i].reference_chosen, 0.05 * w) << i;
    EXPECT_NEAR(rough[i].reference_rejected, exact[i].reference_rejected, 0.05 * l) << i;
    difference = std::max(difference, std::abs(rough[i].reference_chosen - exact[i].reference_chosen) / w);
  }
  EXPECT_GT(difference, 1e-5) << "the bf16 model computes in fp32";
  RecordProperty("nat_per_token", std::to_string(difference));
}

/// Training with bf16 weights: the trainables stay fp32, and the gradient points where fp32's does.
TEST_P(Bf16, GradientsPointTheSameWay) {
  GoldenModel fp32(GetParam()), bf16(GetParam(), DType::bf16);
  const PairSet pairs = random_pairs(6, 4);
  std::vector<float> gradients[2];
  int at = 0;
  for (GoldenModel* model : {&fp32, &bf16}) {
    TrainerKit kit(*model, pairs, full_adapter(), smooth_options(), 1, 1);
    kit.step({0}, 1, all_groups, [&](const Member&, ConstView, View g) {
      const std::span<float> row = TrainerKit::row(g);
      gradients[at].assign(row.begin(), row.end());
    });
    ++at;
  }
  EXPECT_LT(relative_error(gradients[1], gradients[0]), 0.05);
  EXPECT_GT(relative_error(gradients[1], gradients[0]), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Models, Bf16, testing::Values("tiny_llama", "tiny_gpt2"),
                         [](const auto& i) { return i.param; });

}  // namespace
}  // namespace fedpdpo::test
