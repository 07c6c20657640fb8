// AdamW with two rates and one norm for clipping against torch's numbers, through Backend::adamw and through a whole
// LocalTrainer step; the schedule of the rate by hand.
#include <array>
#include <limits>
#include <map>

#include "support/golden.hpp"
#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

struct AdamCase {
  explicit AdamCase(std::size_t index) : json(read_json(golden_folder() / "golden_adamw.json")["cases"][index]) {
    options.lr_shared = json["lr"]["shared"];
    options.lr_private = json["lr"]["private"];
    options.beta1 = json["betas"][0];
    options.beta2 = json["betas"][1];
    options.epsilon = json["eps"];
    options.weight_decay = json["weight_decay"];
    options.clip = json["max_norm"].is_null() ? 0 : json["max_norm"].get<double>();
  }
  nlohmann::json json;
  OptimizerOptions options;
};

std::vector<float> numbers(const nlohmann::json& list) {
  std::vector<float> result;
  for (const auto& x : list) result.push_back(x.get<float>());
  return result;
}

/// fp32 against float64: relative error over the group's numbers. One step rounds a handful of times at 6e-8.
constexpr double tolerance = 1e-6;

/// The second moment's: 1 - beta2 of the fp32 beta2 is 1.29e-5 off 0.001. The bias correction has the same beta2, so
/// the values do not feel it.
constexpr double tolerance_of_second_moment = 2e-5;

void expect_golden(std::span<const float> found, const nlohmann::json& expected, const std::string& what,
                   double within = tolerance) {
  const auto golden = expected.get<std::vector<double>>();
  ASSERT_LE(golden.size(), found.size());
  EXPECT_LT(relative_error(found, golden), within) << what;
}

class GoldenAdamW : public testing::TestWithParam<std::size_t> {};

TEST_P(GoldenAdamW, BackendsSweep) {
  const AdamCase c(GetParam());
  const std::unique_ptr<Backend> backend = make_cpu_backend({});
  struct State {
    std::vector<float> value, first, second;
  };
  std::map<std::string, State> states;
  for (const char* group : {"shared", "private"}) {
    State& s = states[group];
    s.value = numbers(c.json["initial"][group]);
    s.first.assign(s.value.size(), 0);
    s.second.assign(s.value.size(), 0);
  }
  const auto view = [](std::vector<float>& v) { return view_of(v.data(), 1, static_cast<std::int64_t>(v.size())); };
  ASSERT_EQ(c.json["steps"].size(), 5u);
  for (std::size_t step = 0; step < 5; ++step) {
    const nlohmann::json& expected = c.json["steps"][step];
    double squared = 0;
    std::map<std::string, std::vector<float>> gradients;
    for (const char* group : {"shared", "private"}) {
      gradients[group] = numbers(expected["gradient"][group]);
      squared += backend->squared_norm(view(gradients[group]));
    }
    EXPECT_NEAR(std::sqrt(squared) / expected["norm"].get<double>(), 1, 1e-7);
    for (const char* group : {"shared", "private"}) {
      AdamW adamw;
      adamw.learning_rate =
          static_cast<float>(std::string(group) == "shared" ? c.options.lr_shared : c.options.lr_private);
      adamw.weight_decay = static_cast<float>(c.options.weight_decay);
      adamw.step = static_cast<std::int64_t>(step) + 1;
      if (c.options.clip > 0)
        adamw.gradient_scale = static_cast<float>(std::min(1.0, c.options.clip / (std::sqrt(squared) + 1e-6)));
      State& s = states[group];
      backend->adamw(adamw, view(s.value), view(gradients[group]), view(s.first), view(s.second));
      const std::string what = std::string(group) + ", step " + std::to_string(step);
      expect_golden(s.value, expected["value"][group], "values of " + what);
      expect_golden(s.first, expected["exp_avg"][group], "first moment of " + what);
      expect_golden(s.second, expected["exp_avg_sq"][group], "second moment of " + what, tolerance_of_second_moment);
    }
  }
}

/// The same through LocalTrainer: a hook puts the golden gradient into the first entries of LoRA's A (shared rate) and
/// of the reward head (private rate), and 0 elsewhere, so that the norm is theirs.
TEST_P(GoldenAdamW, LocalTrainersStep) {
  const AdamCase c(GetParam());
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 1);
  TrainerOptions options;
  options.batch = 2;
  options.optimizer = c.options;
  options.num_rounds = 10;
  TrainerKit kit(model, pairs, full_adapter(), options, 1, 1);
  const std::size_t shared_at = kit.layout.range(Group::lora_a).begin;
  const std::size_t private_at = kit.layout.range(Group::reward).begin;
  const auto put = [&](std::span<float> target, const nlohmann::json& both) {
    const std::vector<float> shared = numbers(both["shared"]), own = numbers(both["private"]);
    std::copy(shared.begin(), shared.end(), target.begin() + static_cast<std::ptrdiff_t>(shared_at));
    std::copy(own.begin(), own.end(), target.begin() + static_cast<std::ptrdiff_t>(private_at));
  };
  put(kit.values(0), c.json["initial"]);
  double sum_shared = 0, sum_private = 0;
  for (std::size_t step = 0; step < 5; ++step) {
    const nlohmann::json& expected = c.json["steps"][step];
    kit.step({0}, 1 + static_cast<int>(step) / 2, all_groups, [&](const Member& member, ConstView values, View g) {
      EXPECT_EQ(member.state, &kit.states[0]);
      EXPECT_EQ(values.data, kit.values(0).data());
      ASSERT_EQ(g.size(), static_cast<std::int64_t>(kit.layout.size()));
      model.backend->fill(g, 0);
      put(TrainerKit::row(g), expected["gradient"]);
    });
    const auto norm_of = [](const std::vector<double>& g) {
      double sum = 0;
      for (double x : g) sum += x * x;
      return std::sqrt(sum);
    };
    sum_shared += norm_of(expected["gradient"]["shared"]);
    sum_private += norm_of(expected["gradient"]["private"]);
    const auto first = [&](std::size_t begin, std::size_t n) {
      return std::span<const float>(kit.values(0)).subspan(begin, n);
    };
    const std::string what = "step " + std::to_string(step);
    expect_golden(first(shared_at, 5), expected["value"]["shared"], "shared, " + what);
    expect_golden(first(private_at, 3), expected["value"]["private"], "private, " + what);
    expect_golden(kit.first_moment(0).subspan(shared_at, 5), expected["exp_avg"]["shared"], "moment, " + what);
  }
  const RoundSums& sums = kit.states[0].sums;
  EXPECT_NEAR(sums.gradient_norm_shared, sum_shared, 1e-5 * sum_shared);  // before clipping
  EXPECT_NEAR(sums.gradient_norm_private, sum_private, 1e-5 * sum_private);
  EXPECT_EQ(sums.steps, 5);
  for (Group group : all_groups) EXPECT_EQ(kit.states[0].adam_steps[static_cast<std::size_t>(group)], 5);
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenAdamW, testing::Values(0u, 1u),
                         [](const auto& i) { return i.param == 0 ? "clipped" : "plain"; });

TEST(RateFactor, ConstantWithWarmUp) {
  OptimizerOptions o;
  for (int round : {1, 2, 7}) EXPECT_EQ(rate_factor(o, round, 7), 1.0);
  o.warmup_rounds = 3;
  const double expected[] = {0.25, 0.5, 0.75, 1, 1, 1};
  for (int round = 1; round <= 6; ++round) EXPECT_DOUBLE_EQ(rate_factor(o, round, 6), expected[round - 1]) << round;
}

TEST(RateFactor, CosineFallsFromOneAndNeverReachesZero) {
  OptimizerOptions o;
  o.schedule = RateSchedule::cosine;
  const double half_root = std::sqrt(0.5);
  const double expected[] = {1, 0.5 * (1 + half_root), 0.5, 0.5 * (1 - half_root)};
  for (int round = 1; round <= 4; ++round) EXPECT_NEAR(rate_factor(o, round, 4), expected[round - 1], 1e-15) << round;
  o.warmup_rounds = 2;
  EXPECT_NEAR(rate_factor(o, 1, 6), 1.0 / 3, 1e-15);
  EXPECT_NEAR(rate_factor(o, 2, 6), 2.0 / 3, 1e-15);
  for (int round = 3; round <= 6; ++round) EXPECT_NEAR(rate_factor(o, round, 6), expected[round - 3], 1e-15) << round;
  o.warmup_rounds = 9;  // longer than the run
  EXPECT_NEAR(rate_factor(o, 6, 6), 0.6, 1e-15);
}

/// Without momentum a step moves each value by rate * g / (|g| + epsilon): the factor scales the move.
TEST(RateFactor, ScalesTheStepOfItsRound) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(4, 1);
  TrainerOptions options = smooth_options();
  options.num_rounds = 4;
  options.optimizer.clip = 0;
  options.optimizer.schedule = RateSchedule::cosine;
  options.optimizer.beta1 = options.optimizer.beta2 = 0;
  for (int round = 1; round <= 4; ++round) {
    TrainerKit kit(model, pairs, full_adapter(), options, 1, 1);
    const std::size_t at = kit.layout.range(Group::lora_b).begin;
    kit.values(0)[at] = 0;
    kit.step({0}, round, lora_groups, [&](const Member&, ConstView, View g) { model.backend->fill(g, 0.03f); });
    const double move = -1e-2 * rate_factor(options.optimizer, round, 4) * 0.03 / (0.03 + 1e-2);
    EXPECT_NEAR(kit.values(0)[at], move, 1e-6 * std::abs(move)) << round;
  }
}

}  // namespace
}  // namespace fedpdpo::test
