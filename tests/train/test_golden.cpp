// The whole policy against transformers and PEFT (double precision): hidden states, log-probabilities, rewards, loss
// and the gradient of every trainable, within 1e-5 relative (norm-wise per tensor) in fp32.
#include <map>

#include "golden_model.hpp"

namespace fedpdpo::test {
namespace {

constexpr double tolerance = 1e-5;

struct Case {
  std::string model, name;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const std::string& model : golden_models) {
    const auto json = read_json(golden_folder() / model / "golden.json");
    for (const auto& [name, value] : json["cases"].items()) cases.push_back({model, name});
  }
  return cases;
}

class Golden : public testing::TestWithParam<Case> {};

struct Outcome {
  std::vector<PairScores> scores;
  std::vector<float> gradients;
  double mean_loss = 0;
};

/// One forward and backward pass over all pairs, by `split` batches.
Outcome run_case(GoldenModel& model, const ParameterLayout& layout, const LossOptions& loss_options, bool share_prefix,
                 std::size_t num_batches) {
  Policy policy(*model.backend, model.folder.config(), model.weights, layout);
  std::vector<float> values(layout.size() + 1);
  model.fill(layout, values);
  Outcome outcome;
  outcome.gradients.assign(layout.size() + 1, std::nanf(""));
  const std::vector<PairToPack> all = model.all_pairs();
  outcome.scores.resize(all.size());
  CohortGradients gradients{outcome.gradients.data(), 0, Write::overwrite, {}};
  gradients.wanted.fill(true);
  PackingOptions packing = policy.packing();
  packing.share_prefix = share_prefix;
  const std::size_t step = all.size() / num_batches;
  for (std::size_t begin = 0; begin < all.size(); begin += step) {
    PackedBatch batch;
    const MemberPairs member{0, std::span(all).subspan(begin, step)};
    pack(model.pairs, std::span(&member, 1), packing, batch);
    const auto loss = [&](std::size_t pair, PairScores& s) {
      s.reference_chosen = model.json["cases"]["frozen"]["logp_chosen"][begin + pair].get<double>();
      s.reference_rejected = model.json["cases"]["frozen"]["logp_rejected"][begin + pair].get<double>();
      PairLoss result = preference_loss(loss_options, s);
      const double share = 1.0 / static_cast<double>(all.size());
      outcome.mean_loss += result.loss * share;
      for (double* d :
           {&result.d_log_prob_chosen, &result.d_log_prob_rejected, &result.d_reward_chosen, &result.d_reward_rejected})
        *d *= share;
      return result;
    };
    policy.train(batch, {values.data(), 0}, gradients, loss, std::span(outcome.scores).subspan(begin, step));
    gradients.write = Write::accumulate;
  }
  return outcome;
}

TEST_P(Golden, ScoresLossAndGradients) {
  GoldenModel model(GetParam().model);
  const std::string& name = GetParam().name;
  const nlohmann::json& expected = model.json["cases"][name];
  const ParameterLayout layout(model.folder.config(), model.options(name), {});
  const bool has_loss = expected["loss"] != "none";
  for (const bool share_prefix : {true, false}) {
    for (const std::size_t num_batches : {1u, 2u}) {
      SCOPED_TRACE(std::string(share_prefix ? "shared" : "unshared") + " prefix, batches " +
                   std::to_string(num_batches));
      const Outcome outcome = run_case(model, layout, model.loss(name), share_prefix, num_batches);
      for (std::size_t i = 0; i < outcome.scores.size(); ++i) {
        const PairScores& s = outcome.scores[i];
        EXPECT_NEAR(s.log_prob_chosen, expected["logp_chosen"][i], tolerance * 100) << i;
        EXPECT_LT(std::abs(s.log_prob_chosen / expected["logp_chosen"][i].get<double>() - 1), tolerance) << i;
        EXPECT_LT(std::abs(s.log_prob_rejected / expected["logp_rejected"][i].get<double>() - 1), tolerance) << i;
        if (layout.has(Group::reward)) {
          EXPECT_NEAR(s.reward_chosen, expected["reward_chosen"][i], tolerance) << i;
          EXPECT_NEAR(s.reward_rejected, expected["reward_rejected"][i], tolerance) << i;
        }
      }
      if (!has_loss) continue;
      EXPECT_NEAR(outcome.mean_loss, expected["mean_loss"], tolerance);
      ASSERT_EQ(layout.parameters().size(), expected["trainables"].size());
      for (const Parameter& p : layout.parameters()) {
        const auto golden = model.read<double>("case/" + name + "/grad/", p);
        const auto found = std::span(outcome.gradients).subspan(p.offset, p.size());
        ASSERT_EQ(golden.size(), p.size()) << p.name;
        // The reward's bias cancels in the margin: its gradient is exactly 0 and compared absolutely.
        EXPECT_LT(relative_error(found, golden), tolerance) << p.name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(all_cases()),
                         [](const auto& i) { return i.param.model + "_" + i.param.name; });

class GoldenHidden : public testing::TestWithParam<Case> {};

/// Hidden states of the backbone, row by row, from the packed batch back to the sequences.
TEST_P(GoldenHidden, FinalHiddenStates) {
  GoldenModel model(GetParam().model);
  const std::string& name = GetParam().name;
  const ParameterLayout layout(model.folder.config(), model.options(name), {});
  std::vector<float> values(layout.size() + 1);
  model.fill(layout, values);
  Decoder decoder(*model.backend, model.folder.config(), model.weights, layout);
  Heads heads(*model.backend, model.folder.config(), model.weights, layout);
  PackedBatch batch;
  const std::vector<PairToPack> all = model.all_pairs();
  const MemberPairs member{0, all};
  pack(model.pairs, std::span(&member, 1), {true, true}, batch);
  const CohortParameters parameters{values.data(), 0};
  ConstView h = decoder.forward({batch.tokens, batch.positions, {batch.segments, batch.segment_groups}, batch.clients},
                                parameters, Pass::evaluate);
  ConstView z = heads.bottleneck(batch.clients, parameters, h);
  const auto d = static_cast<std::size_t>(model.folder.config().hidden_size);
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t side = 0; side < 2; ++side) {
      const auto golden = model.golden.read<double>("case/" + name + "/z/" + std::to_string(i) + "/" +
                                                    (side == 0 ? "chosen" : "rejected"));
      const ResponseRows& rows = batch.responses[2 * i + side];
      // The sequence's rows: the pair's prefix, which ends where the first response rows begin, then the branch.
      std::vector<std::int32_t> order;
      const auto prompt = static_cast<std::int32_t>(model.pairs.files[0].prompt[i].size());
      const std::int32_t common = rows.common_end - rows.common_begin;
      const std::int32_t first = batch.responses[2 * i].own_begin - common - prompt;
      for (std::int32_t r = first; r < first + prompt + common; ++r) order.push_back(r);
      for (std::int32_t r = rows.own_begin; r < rows.own_end; ++r) order.push_back(r);
      ASSERT_EQ(order.size() * d, golden.size());
      std::vector<float> found;
      for (std::int32_t r : order) {
        const float* row = z.f32() + r * z.stride;
        found.insert(found.end(), row, row + d);
      }
      EXPECT_LT(relative_error(found, golden), tolerance) << "pair " << i << " side " << side;
    }
  }
}

/// Those that store z.
std::vector<Case> hidden_cases() {
  std::vector<Case> cases;
  for (const Case& one : all_cases())
    if (!one.name.starts_with("reward_")) cases.push_back(one);
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenHidden, testing::ValuesIn(hidden_cases()),
                         [](const auto& i) { return i.param.model + "_" + i.param.name; });

/// A cohort of members with parameters of their own gives each the numbers that it has alone.
TEST(Cohort, EqualsOneByOne) {
  GoldenModel model("tiny_llama");
  AdapterOptions options = model.options("fedpdpo_full");
  const ParameterLayout layout(model.folder.config(), options, {});
  const auto size = static_cast<std::int64_t>(layout.size());
  std::vector<float> values(3 * layout.size());
  for (int slot = 0; slot < 3; ++slot) {
    std::span<float> own = std::span(values).subspan(static_cast<std::size_t>(slot) * layout.size(), layout.size());
    model.fill(layout, own);
    for (std::size_t i = 0; i < own.size(); ++i) own[i] *= 1.0f + 0.1f * static_cast<float>(slot);
  }
  const std::vector<PairToPack> all = model.all_pairs();
  const LossOptions loss_options = model.loss("fedpdpo_full");
  const auto loss = [&](std::size_t, PairScores& s) { return preference_loss(loss_options, s); };
  const auto train = [&](std::span<const MemberPairs> members, std::vector<float>& gradient) {
    Policy policy(*model.backend, model.folder.config(), model.weights, layout);
    PackedBatch batch;
    pack(model.pairs, members, policy.packing(), batch);
    std::vector<PairScores> scores(batch.pairs.size());
    gradient.assign(values.size(), 0.0f);
    CohortGradients gradients{gradient.data(), size, Write::overwrite, {}};
    gradients.wanted.fill(true);
    policy.train(batch, {values.data(), size}, gradients, loss, scores);
    return scores;
  };
  const MemberPairs members[] = {
      {2, std::span(all).subspan(0, 2)}, {0, std::span(all).subspan(2, 1)}, {1, std::span(all).subspan(1, 3)}};
  std::vector<float> together, alone;
  const std::vector<PairScores> all_scores = train(members, together);
  std::size_t pair = 0;
  for (const MemberPairs& member : members) {
    const std::vector<PairScores> scores = train(std::span(&member, 1), alone);
    for (const PairScores& s : scores) {
      EXPECT_NEAR(s.log_prob_chosen, all_scores[pair].log_prob_chosen, 1e-4);
      EXPECT_NEAR(s.reward_rejected, all_scores[pair].reward_rejected, 1e-5);
      ++pair;
    }
    const std::size_t offset = static_cast<std::size_t>(member.slot) * layout.size();
    EXPECT_LT(relative_error(std::span(together).subspan(offset, layout.size()),
                             std::span(alone).subspan(offset, layout.size())),
              tolerance);
  }
}

}  // namespace
}  // namespace fedpdpo::test
