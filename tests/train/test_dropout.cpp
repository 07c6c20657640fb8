// LoRA dropout: the gradient is that of the loss with the same masks, and the masks are unbiased and keyed by stream.
#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

/// A policy with LoRA alone at the golden values, and a loss that is linear in the log-probabilities, so that rounding
/// in the log-probabilities (1e-6) is all the noise that a difference has.
struct DropoutModel {
  explicit DropoutModel(const std::string& name)
      : model(name), layout(model.folder.config(), adapter(model), {}), values(layout.size()) {
    model.fill(layout, values);
    const MemberPairs member{0, pairs_to_pack};
    pack(model.pairs, std::span(&member, 1), {.keep_last_rows = false, .share_prefix = true}, batch);
  }

  static AdapterOptions adapter(const GoldenModel& model) {
    AdapterOptions o = model.options("lora_dpo");
    o.lora_dropout = 0.3;
    return o;
  }

  /// Sum over pairs of log pi(chosen) - 0.5 log pi(rejected), and its gradient.
  double loss(const LoraDropout& dropout, std::vector<float>* gradient = nullptr) {
    Policy policy(*model.backend, model.folder.config(), model.weights, layout);
    std::vector<float> written(layout.size());
    CohortGradients gradients{written.data(), 0, Write::overwrite, {}};
    gradients.wanted[0] = gradients.wanted[1] = true;
    std::vector<PairScores> scores(batch.pairs.size());
    double sum = 0;
    policy.train(
        batch, {values.data(), 0}, gradients,
        [&](std::size_t, PairScores& s) {
          sum += s.log_prob_chosen - 0.5 * s.log_prob_rejected;
          return PairLoss{.d_log_prob_chosen = 1, .d_log_prob_rejected = -0.5};
        },
        scores, dropout);
    if (gradient) *gradient = written;
    return sum;
  }

  GoldenModel model;
  ParameterLayout layout;
  std::vector<float> values;
  std::vector<PairToPack> pairs_to_pack = model.all_pairs();
  PackedBatch batch;
};

constexpr StreamId stream_of(std::uint32_t step) {
  return {.seed = 3, .purpose = Purpose::dropout, .client = 2, .round = 5, .step = step};
}

class Dropout : public testing::TestWithParam<std::string> {};

/// Central differences in the model with dropout on. fp32 log-probabilities carry about 1e-5 of rounding in the sum;
/// with the step 2e-2 that is 5e-4 in the slope, and the curvature adds about as much: 1 % of the largest entry holds
/// both.
TEST_P(Dropout, GradientIsThatOfTheMaskedModel) {
  DropoutModel m(GetParam());
  const StreamId id = stream_of(1);
  const LoraDropout dropout{0.3f, std::span(&id, 1), {}};
  std::vector<float> gradient, without;
  m.loss(dropout, &gradient);
  m.loss({}, &without);
  EXPECT_GT(relative_error(gradient, without), 0.1) << "dropout changed nothing";
  for (const Group group : lora_groups) {
    const ParameterRange range = m.layout.range(group);
    std::vector<std::size_t> order;
    for (std::size_t i = range.begin; i < range.end; ++i) order.push_back(i);
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return std::abs(gradient[a]) > std::abs(gradient[b]); });
    const double largest = std::abs(static_cast<double>(gradient[order[0]]));
    double worst_without = 0;
    for (const std::size_t rank : {0, 1, 2, 7, 20, 60, 150, 300}) {
      const std::size_t i = order[rank];
      const float kept = m.values[i];
      constexpr float h = 2e-2f;
      m.values[i] = kept + h;
      const double above = m.loss(dropout);
      m.values[i] = kept - h;
      const double below = m.loss(dropout);
      m.values[i] = kept;
      const double slope = (above - below) / (2 * static_cast<double>(h));
      EXPECT_NEAR(static_cast<double>(gradient[i]), slope, 0.01 * largest) << group_name(group) << " entry " << i;
      worst_without = std::max(worst_without, std::abs(static_cast<double>(without[i]) - slope) / largest);
    }
    EXPECT_GT(worst_without, 0.05) << "the gradient without dropout would pass as well";
  }
}

TEST_P(Dropout, IsKeyedByItsStream) {
  DropoutModel m(GetParam());
  const auto loss_of = [&](const StreamId& id) { return m.loss({0.3f, std::span(&id, 1), {}}); };
  const double once = loss_of(stream_of(1));
  EXPECT_EQ(loss_of(stream_of(1)), once);
  EXPECT_NE(loss_of(stream_of(2)), once);
  StreamId other = stream_of(1);
  other.client = 3;
  EXPECT_NE(loss_of(other), once);
  other = stream_of(1);
  other.round = 6;
  EXPECT_NE(loss_of(other), once);
  other = stream_of(1);
  other.seed = 4;
  EXPECT_NE(loss_of(other), once);
  EXPECT_NE(m.loss({}), once);
}

/// B times 1e-3 makes LoRA's effect on the hidden states linear (its square is 1e-3 of it), so that the mean over
/// streams of the effect is the effect without dropout. With p = 0.5 one stream's effect is off by about its own size;
/// the mean over 600 by 1 / sqrt(600) = 4 %. Without the factor 1 / (1 - p) it would be off by 50 %.
TEST_P(Dropout, MeanOverStreamsIsUnbiased) {
  DropoutModel m(GetParam());
  const ParameterRange b = m.layout.range(Group::lora_b);
  std::vector<float> small = m.values, zero = m.values;
  for (std::size_t i = b.begin; i < b.end; ++i) {
    small[i] *= 1e-3f;
    zero[i] = 0;
  }
  Decoder decoder(*m.model.backend, m.model.folder.config(), m.model.weights, m.layout);
  const auto hidden = [&](const std::vector<float>& values, const LoraDropout& dropout) {
    const ConstView h = decoder.forward(
        {m.batch.tokens, m.batch.positions, {m.batch.segments, m.batch.segment_groups}, m.batch.clients},
        {values.data(), 0}, Pass::evaluate, dropout);
    return std::vector<double>(h.f32(), h.f32() + h.size());
  };
  const std::vector<double> base = hidden(zero, {});
  std::vector<double> effect = hidden(small, {}), mean(base.size(), 0.0);
  for (std::size_t i = 0; i < base.size(); ++i) effect[i] -= base[i];
  constexpr int num_streams = 600;
  double one_stream = 0;
  for (std::uint32_t step = 0; step < num_streams; ++step) {
    const StreamId id = stream_of(step);
    std::vector<double> found = hidden(small, {0.5f, std::span(&id, 1), {}});
    for (std::size_t i = 0; i < base.size(); ++i) {
      found[i] -= base[i];
      mean[i] += found[i] / num_streams;
    }
    if (step == 0) one_stream = relative_error(found, effect);
  }
  EXPECT_GT(one_stream, 0.3) << "half of the inputs should be gone";
  EXPECT_LT(relative_error(mean, effect), 0.12);
}

INSTANTIATE_TEST_SUITE_P(Models, Dropout, testing::Values("tiny_llama", "tiny_gpt2"),
                         [](const auto& i) { return i.param; });

/// Every step of a round has masks of its own, refit steps among them; other rounds have others.
TEST(DropoutInTraining, MasksDifferFromStepToStep) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(4, 4);
  AdapterOptions adapter = full_adapter();
  adapter.lora_dropout = 0.4;
  TrainerOptions options = smooth_options();
  options.optimizer.lr_shared = options.optimizer.lr_private = 0;  // the model stays, so that only the masks change
  options.batch = 4;
  TrainerKit kit(model, pairs, adapter, options, 1, 1);
  const auto gradient = [&](int round, int steps_done, int refit_done) {
    std::vector<float> found;
    kit.states[0].pairs_drawn = 0;
    kit.states[0].steps_done = steps_done;
    kit.states[0].refit_done = refit_done;
    kit.step({0}, round, all_groups, [&](const Member&, ConstView, View g) {
      const std::span<float> row = TrainerKit::row(g);
      found.assign(row.begin(), row.end());
    });
    return found;
  };
  const std::vector<float> first = gradient(1, 0, 0);
  EXPECT_EQ(gradient(1, 0, 0), first);
  EXPECT_NE(gradient(1, 1, 0), first);
  EXPECT_NE(gradient(2, 0, 0), first);
  EXPECT_NE(gradient(1, 4, 1), gradient(1, 4, 0)) << "refit steps share a mask";
}

}  // namespace
}  // namespace fedpdpo::test
