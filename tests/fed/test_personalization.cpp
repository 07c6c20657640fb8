// The personal LoRA's three kinds by hand, at rank 1 on a map of 2 x 2: a buffer is A (2), B (2) of the shared LoRA and
// A (2), B (2) of the personal one.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fedpdpo/fed/personalization.hpp"
#include "tiny_layout.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;
const std::vector<Group> lora{Group::lora_a, Group::lora_b};
const std::vector<Group> personal{Group::personal_a, Group::personal_b};

/// One client's buffers under a kind of personalization.
struct Client {
  explicit Client(const PersonalizationOptions& options, const std::vector<Group>& shared = lora)
      : kind(make_personalization(options)), layout(tiny_model(), tiny_adapter(1, 1, options.kind), shared) {}

  LocalStep step(double rate = 0) {
    return {.backend = *backend,
            .layout = layout,
            .learning_rate_shared = 7,  // nothing here depends on it
            .learning_rate_private = rate,
            .server = view_of(server.data(), 1, static_cast<std::int64_t>(server.size())),
            .values = view_of(values.data(), 1, 8),
            .gradient = view_of(gradient.data(), 1, 8),
            .state = state,
            .server_state = server_state,
            .trained = trained};
  }
  Values own() const { return {values.begin() + 4, values.end()}; }
  float share() const { return state.at("apfl.share").view().f32()[0]; }

  std::unique_ptr<Backend> backend = make_cpu_backend({});
  std::unique_ptr<Personalization> kind;
  ParameterLayout layout;
  Values server = Values(4), values = Values(8), gradient = Values(8);
  std::map<std::string, Tensor> state, server_state;
  std::vector<Group> trained = personal;
};

void expect_near(const Values& found, const Values& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6) << i;
}

TEST(Personalization, NoneIsNothing) { EXPECT_EQ(make_personalization({}), nullptr); }

/// Ditto and FedDPA train the shared LoRA, then the personal one for as many steps, private modules in both.
TEST(Personalization, SharedPhasesThenPersonalOnes) {
  for (const PersonalLora kind : {PersonalLora::ditto, PersonalLora::feddpa}) {
    const std::vector<Phase> plan = make_personalization({kind})->plan_round(
        {{2, {Group::head}}, {3, {Group::lora_a, Group::lora_b, Group::head}}});
    ASSERT_EQ(plan.size(), 4u);
    const int steps[] = {2, 3, 2, 3};
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(plan[i].steps, steps[i]);
      EXPECT_EQ(plan[i].adapter, i < 2 ? Adapter::shared : Adapter::personal);
    }
    EXPECT_EQ(plan[1].trainable, (std::vector<Group>{Group::lora_a, Group::lora_b, Group::head}));
    EXPECT_EQ(plan[2].trainable, std::vector<Group>{Group::head});
    EXPECT_EQ(plan[3].trainable, (std::vector<Group>{Group::personal_a, Group::personal_b, Group::head}));
    EXPECT_EQ(make_personalization({kind})->weighs_instances(), kind == PersonalLora::feddpa);
  }
}

/// APFL takes a step on either LoRA in turn, so that the mixture's gradient is at the present y.
TEST(Personalization, ApflTakesTheStepsInTurn) {
  const std::vector<Phase> plan =
      make_personalization({PersonalLora::apfl})->plan_round({{2, {Group::head}}, {2, lora}});
  ASSERT_EQ(plan.size(), 5u);
  EXPECT_EQ(plan[0].steps, 2);
  EXPECT_EQ(plan[0].trainable, std::vector<Group>{Group::head});
  EXPECT_EQ(plan[0].adapter, Adapter::personal) << "private modules go with the client's model, the mixture";
  for (std::size_t i = 1; i < 5; ++i) {
    EXPECT_EQ(plan[i].steps, 1);
    EXPECT_EQ(plan[i].trainable, i % 2 == 1 ? lora : personal);
    EXPECT_EQ(plan[i].adapter, i % 2 == 1 ? Adapter::shared : Adapter::personal);
  }
}

/// g + prox (v - x) on the personal LoRA; the shared one's gradient stays.
TEST(Ditto, PullsThePersonalLoraToTheServers) {
  Client client({.kind = PersonalLora::ditto, .prox = 0.5});
  client.server = {1, 2, 3, 4};
  client.values = {9, 9, 9, 9, 2, 2, 1, 0};
  client.gradient = {1, 1, 1, 1, 1, 0, -1, 2};
  client.kind->adjust_gradient(client.step());
  EXPECT_EQ(client.gradient, (Values{1, 1, 1, 1, 1.5, 0, -2, 0}));
  EXPECT_EQ(client.values, (Values{9, 9, 9, 9, 2, 2, 1, 0}));
}

/// Without a gradient of the loss each SGD step of rate 1/2 takes v half of the way to x, whatever y is.
TEST(Ditto, AloneItsPullEndsAtTheServers) {
  Client client({.kind = PersonalLora::ditto, .prox = 1});
  client.server = {1, 2, 3, 4};
  client.values = {9, 9, 9, 9, 9, -6, 3, 4};
  for (int step = 1; step <= 3; ++step) {
    client.gradient = Values(8, 0);
    client.kind->adjust_gradient(client.step());
    for (std::size_t i = 4; i < 8; ++i) client.values[i] -= 0.5f * client.gradient[i];
  }
  EXPECT_EQ(client.own(), (Values{1 + 8 / 8.0f, 2 - 8 / 8.0f, 3, 4}));
}

TEST(Ditto, WithoutAPullIsTrainingAlone) {
  Client client({.kind = PersonalLora::ditto, .prox = 0});
  client.server = {1, 2, 3, 4};
  client.gradient = {1, 1, 1, 1, 1, 0, -1, 2};
  client.kind->adjust_gradient(client.step());
  EXPECT_EQ(client.gradient, (Values{1, 1, 1, 1, 1, 0, -1, 2}));
}

/// Under FedSA-LoRA the server has A alone (and it is B that comes first under FFA-LoRA): what it does not have pulls
/// nothing.
TEST(Ditto, PullsWhatTheServerHas) {
  Client sa({.kind = PersonalLora::ditto, .prox = 0.5}, {Group::lora_a});
  sa.server = {1, 2};
  sa.values = {9, 9, 9, 9, 2, 2, 1, 0};
  sa.gradient = Values(8, 0);
  sa.kind->adjust_gradient(sa.step());
  EXPECT_EQ(sa.gradient, (Values{0, 0, 0, 0, 0.5, 0, 0, 0}));

  Client ffa({.kind = PersonalLora::ditto, .prox = 0.5}, {Group::lora_b});
  ffa.server = {1, 2};
  ffa.values = {9, 9, 9, 9, 2, 2, 5, 0};  // B, A; personal A, personal B
  ffa.gradient = Values(8, 0);
  ffa.kind->adjust_gradient(ffa.step());
  EXPECT_EQ(ffa.gradient, (Values{0, 0, 0, 0, 0, 0, 2, -1}));
}

constexpr double rate = 0.05;

/// v = (3, 2, 1, 0), a = 1/2 at the start.
Client apfl_client() {
  Client client({.kind = PersonalLora::apfl, .mix = 0.5});
  client.values = {1, 2, 3, 4, 3, 2, 1, 0};
  client.kind->after_exchange(client.step());
  return client;
}

TEST(Apfl, TheModelIsTheMixture) {
  Client client = apfl_client();
  EXPECT_EQ(client.own(), (Values{2, 2, 2, 2}));
  EXPECT_EQ(client.share(), 0.5f);
  // A step of the shared LoRA moves the mixture by its share; v stays.
  client.values[3] = 8;
  client.kind->adjust_step(client.step(rate), Adapter::shared);
  EXPECT_EQ(client.own(), (Values{2, 2, 2, 4}));
  // So does the exchange.
  client.values = {1, 2, 3, 6, 2, 2, 2, 4};
  client.kind->after_exchange(client.step());
  EXPECT_EQ(client.own(), (Values{2, 2, 2, 3}));
  client.kind->after_exchange(client.step());
  EXPECT_EQ(client.own(), (Values{2, 2, 2, 3})) << "mixing twice is mixing once";
}

/// grad f(m) = (1, 0, -1, 2): <v - y, grad> = (2)(1) + (0)(0) + (-2)(-1) + (-4)(2) = -4, so a = 1/2 + 4 rate = 0.7.
/// v moves by the gradient a grad f(m) with the share before: (0.5, 0, -0.5, 1).
TEST(Apfl, LearnsTheShareAndMovesItsOwn) {
  Client client = apfl_client();
  client.gradient = {5, 5, 5, 5, 1, 0, -1, 2};
  client.kind->adjust_gradient(client.step(rate));
  expect_near(client.gradient, {5, 5, 5, 5, 0.5f, 0, -0.5f, 1});
  expect_near(client.own(), {3, 2, 1, 0});
  EXPECT_NEAR(client.share(), 0.7, 1e-6);
  for (std::size_t i = 4; i < 8; ++i) client.values[i] -= 0.1f * client.gradient[i];  // v = 2.95, 2, 1.05, -0.1
  client.kind->adjust_step(client.step(rate), Adapter::personal);
  expect_near(client.own(), {0.7f * 2.95f + 0.3f, 2, 0.7f * 1.05f + 0.9f, 0.7f * -0.1f + 1.2f});
  expect_near(Values(client.values.begin(), client.values.begin() + 4), {1, 2, 3, 4});
  // The next step begins at the new v.
  client.gradient = Values(8, 0);
  client.kind->adjust_gradient(client.step(rate));
  expect_near(client.own(), {2.95f, 2, 1.05f, -0.1f});
  EXPECT_NEAR(client.share(), 0.7, 1e-6);
}

/// Over ffa-lora, or in a round of rolora's, one factor is not trained: its part of the gradient buffer is garbage.
TEST(Apfl, AFactorThatIsNotTrainedDoesNotCount) {
  Client client = apfl_client();
  client.trained = {Group::personal_b};
  const float garbage = std::numeric_limits<float>::quiet_NaN();
  client.gradient = {0, 0, 0, 0, garbage, 1e30f, -1, 2};  // of B: (-2)(-1) + (-4)(2) = -6
  client.kind->adjust_gradient(client.step(rate));
  EXPECT_NEAR(client.share(), 0.8, 1e-6);
}

/// f(m) = ||m||^2 / 2: the step of the share is minus rate times df/da, here by a central difference in double.
TEST(Apfl, TheSharesGradientIsThatOfTheLoss) {
  Client client = apfl_client();
  const Values y(client.values.begin(), client.values.begin() + 4), v{3, 2, 1, 0};
  const auto loss = [&](double a) {
    double sum = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const double m = a * static_cast<double>(v[i]) + (1 - a) * static_cast<double>(y[i]);
      sum += m * m / 2;
    }
    return sum;
  };
  const double slope = (loss(0.5 + 1e-4) - loss(0.5 - 1e-4)) / 2e-4;
  ASSERT_GT(std::abs(slope), 1);
  std::copy_n(client.values.begin() + 4, 4, client.gradient.begin() + 4);  // grad f(m) = m
  client.kind->adjust_gradient(client.step(rate));
  EXPECT_NEAR(client.share(), 0.5 - rate * slope, 1e-6);
}

TEST(Apfl, TheShareStaysBetweenZeroAndOne) {
  for (const float sign : {1.0f, -1.0f}) {
    Client client = apfl_client();
    client.gradient = {0, 0, 0, 0, sign * 1000, 0, 0, 0};  // <v - y, grad> = 2000 sign
    client.kind->adjust_gradient(client.step(rate));
    EXPECT_EQ(client.share(), sign > 0 ? 0 : 1);
    client.kind->adjust_step(client.step(rate), Adapter::personal);
    EXPECT_EQ(client.own(), sign > 0 ? (Values{1, 2, 3, 4}) : (Values{3, 2, 1, 0}));
  }
}

/// The trainer drops a step whose gradient is not finite: the client's model, its v and its share must be as before.
TEST(Apfl, AGradientThatIsNotFiniteLeavesNoTrace) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Client client = apfl_client();
    client.gradient = {0, 0, 0, 0, bad, 0, 0, 0};
    client.kind->adjust_gradient(client.step(rate));
    EXPECT_FALSE(std::isfinite(client.gradient[4])) << "the trainer must see it";
    EXPECT_EQ(client.share(), 0.5f);
    EXPECT_EQ(client.own(), (Values{2, 2, 2, 2}));
    client.kind->after_exchange(client.step());
    EXPECT_EQ(client.own(), (Values{2, 2, 2, 2}));
  }
}

/// Cosines with the mean direction: of (1, 0) and (0, 1), whatever the samples' lengths, cut to [0, 1].
TEST(FedDpa, WeightsAreMeanCosines) {
  const Values samples{1, 0, 0, 5};
  const Values embeddings{3, 0, 2, 2, -1, 0, 4, -3, 0, 0, 3, 4};
  const Values weights = instance_weights(embeddings, samples, 2);
  expect_near(weights, {0.5f, std::sqrt(0.5f), 0, 0.1f, 0, 0.7f});
  expect_near(instance_weights(Values{-2, 0, 1, 0}, Values{-1, 0}, 2), {1, 0});
  expect_near(instance_weights(embeddings, {}, 2), Values(6, 0));
  EXPECT_TRUE(instance_weights({}, samples, 2).empty());
}

}  // namespace
}  // namespace fedpdpo::test
