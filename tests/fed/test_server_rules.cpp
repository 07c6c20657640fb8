// Server rules and control variates by hand: small vectors, numbers that are exact in binary where they can be.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo::test {
namespace {

using Means = std::map<std::string, std::vector<float>>;
const Means no_means;

std::unique_ptr<FederatedMethod> make(const std::string& name, const RunOptions& options = {}) {
  return find_method(name)->make(options);
}

ModelConfig tiny_config() {
  return read_model_config(std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests" / "golden" / "tiny_llama");
}

/// A layout whose shared span the rules below do not look into.
const ParameterLayout& any_layout() {
  static const ModelConfig config = tiny_config();
  static const std::vector<Group> lora{Group::lora_a, Group::lora_b};
  static const ParameterLayout layout(config, {}, lora);
  return layout;
}

ServerRound round_with(std::span<const float> average, int round = 1) {
  return {.layout = any_layout(),
          .round = round,
          .num_clients = 2,
          .num_counted = 2,
          .average = average,
          .means = no_means};
}

TEST(FedAvgM, AccumulatesMomentum) {
  RunOptions options;
  options.server_lr = 0.5;
  options.server_momentum = 0.75;
  const auto method = make("fedavgm", options);
  ServerState server{{1, -2}, {}, {}};
  method->update_server(server, round_with(std::vector<float>{3, -2}));  // D = 2, 0; v = 2, 0
  EXPECT_EQ(server.values, (std::vector<float>{2, -2}));
  method->update_server(server, round_with(std::vector<float>{3, 0}));  // D = 1, 2; v = 2.5, 2
  EXPECT_EQ(server.values, (std::vector<float>{3.25f, -1}));
  EXPECT_EQ(server.state.at("momentum"), (std::vector<float>{2.5f, 2}));
}

TEST(FedAvgM, WithoutMomentumAndRateOneIsFedAvg) {
  RunOptions options;
  options.server_momentum = 0;
  const auto method = make("fedavgm", options);
  ServerState server{{1, -2}, {}, {}};
  method->update_server(server, round_with(std::vector<float>{3, -2}));
  EXPECT_EQ(server.values, (std::vector<float>{3, -2}));
}

struct Adaptive {
  std::string name;
  double (*second)(double v, double d2);
};

class FedOptRule : public testing::TestWithParam<Adaptive> {};

/// Two rounds of algorithm 2 in double; the second moment is of D, which differs from that of the momentum in round 2.
TEST_P(FedOptRule, MatchesAlgorithmTwo) {
  RunOptions options;
  options.server_lr = 0.5;
  options.server_momentum = 0.5;
  options.server_beta2 = 0.75;
  options.server_tau = 0.25;
  const auto method = make(GetParam().name, options);
  ServerState server{{1, -2, 0.5f}, {}, {}};
  const std::vector<std::vector<float>> averages{{2, -2, 0.25f}, {1, 0, 0.5f}};
  double x[] = {1, -2, 0.5}, m[] = {0, 0, 0}, v[] = {0.0625, 0.0625, 0.0625};
  for (const std::vector<float>& average : averages) {
    method->update_server(server, round_with(average));
    for (std::size_t i = 0; i < 3; ++i) {
      const double d = static_cast<double>(average[i]) - x[i];
      m[i] = 0.5 * m[i] + 0.5 * d;
      v[i] = GetParam().second(v[i], d * d);
      x[i] += 0.5 * m[i] / (std::sqrt(v[i]) + 0.25);
      EXPECT_NEAR(server.values[i], x[i], 1e-6) << i;
      EXPECT_NEAR(server.state.at("second_moment")[i], v[i], 1e-6) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, FedOptRule,
                         testing::Values(Adaptive{"fedadagrad", [](double v, double d2) { return v + d2; }},
                                         Adaptive{"fedyogi",
                                                  [](double v, double d2) {
                                                    return v - 0.25 * d2 * (v > d2 ? 1.0 : (v < d2 ? -1.0 : 0.0));
                                                  }},
                                         Adaptive{"fedadam", [](double v, double d2) { return 0.75 * v + 0.25 * d2; }}),
                         [](const auto& i) { return i.param.name; });

/// Momentum and rates for which two rounds come out in whole numbers and squares: D = 3 in both, beta1 = 1/2, tau = 1,
/// eta = 4. FedAdam, beta2 = 0: v = 9 in both rounds, whereas the square of the momentum would be 9/4 and 81/16.
/// FedYogi, beta2 = 0: v = 1 + 9, then 10 - 9 = 1, for 9 < 10. FedAdagrad: v = 1 + 9, then 19.
TEST(FedOptRules, ByHand) {
  RunOptions options;
  options.server_lr = 4;
  options.server_momentum = 0.5;
  options.server_beta2 = 0;
  options.server_tau = 1;
  const std::tuple<const char*, double, double> cases[] = {
      {"fedadam", 9, 9}, {"fedyogi", 10, 1}, {"fedadagrad", 10, 19}};
  for (const auto& [name, first, second] : cases) {
    const auto method = make(name, options);
    ServerState server{{5}, {}, {}};
    method->update_server(server, round_with(std::vector<float>{8}));  // m = 1.5
    // x is rounded to fp32, so the second D is 3 within 1e-6.
    EXPECT_NEAR(server.state.at("second_moment")[0], first, 1e-5) << name;
    EXPECT_NEAR(server.values[0], 5 + 4 * 1.5 / (std::sqrt(first) + 1), 1e-5) << name;
    const float x = server.values[0];
    method->update_server(server, round_with(std::vector<float>{x + 3}));  // m = 2.25
    EXPECT_NEAR(server.state.at("second_moment")[0], second, 1e-5) << name;
    EXPECT_NEAR(server.values[0], x + 4 * 2.25 / (std::sqrt(second) + 1), 1e-5) << name;
  }
}

/// Two clients, two rounds: c_i+ = c_i - c + (x - y)/(K lr), c <- c + mean of the changes; with everybody counted the
/// server's control is the mean of the clients'.
TEST(Scaffold, ControlsFollowTheirDefinition) {
  const auto backend = make_cpu_backend({});
  const ModelConfig config = tiny_config();
  AdapterOptions adapter;
  adapter.lora_rank = 1;
  adapter.lora_targets = "k_proj";
  adapter.lora_first_layer = 1;
  const auto method = make("scaffold");
  const ParameterLayout layout(config, adapter, method->shared_groups());
  const std::size_t n = layout.size();
  const auto width = static_cast<std::int64_t>(n);
  constexpr int steps = 4;
  constexpr double rate = 0.25;  // K lr = 1
  ServerState server{std::vector<float>(n, 1.0f), {}, {}};
  std::map<std::string, Tensor> states[2], server_state;
  std::vector<double> c(n, 0.0), controls[2] = {c, c};
  for (int round = 1; round <= 2; ++round) {
    std::vector<float> results[2], mean(n, 0.0f), average(n, 0.0f);
    for (int k = 0; k < 2; ++k) {
      results[k] = server.values;
      for (std::size_t i = 0; i < n; ++i)
        results[k][i] -= 0.125f * static_cast<float>(static_cast<int>(i % 3) + 2 * k - round);
      const LocalStep step{.backend = *backend,
                           .layout = layout,
                           .client = k,
                           .round = round,
                           .step = steps,
                           .learning_rate_shared = rate,
                           .server = view_of(server.values.data(), 1, width),
                           .values = view_of(results[k].data(), 1, width),
                           .gradient = {},
                           .state = states[k],
                           .server_state = server_state};
      // The correction of a step: y <- y - lr (c - c_i).
      std::vector<float> corrected = results[k];
      method->adjust_step({.backend = *backend,
                           .layout = layout,
                           .client = k,
                           .round = round,
                           .step = 1,
                           .learning_rate_shared = rate,
                           .server = step.server,
                           .values = view_of(corrected.data(), 1, width),
                           .gradient = {},
                           .state = states[k],
                           .server_state = server_state});
      for (std::size_t i = 0; i < n; ++i)
        EXPECT_EQ(corrected[i], static_cast<float>(results[k][i] - rate * (c[i] - controls[k][i])));

      method->finish_local(step);
      for (std::size_t i = 0; i < n; ++i) {
        const double change = (server.values[i] - static_cast<double>(results[k][i])) / (steps * rate) - c[i];
        controls[k][i] += change;
        EXPECT_EQ(states[k].at("control").view().f32()[i], static_cast<float>(controls[k][i]));
        mean[i] += static_cast<float>(change / 2);
        average[i] += results[k][i] / 2;
      }
    }
    const Means means{{"control_change", mean}};
    method->update_server(server, {layout, round, 0, 2, 2, average, means});
    for (std::size_t i = 0; i < n; ++i) {
      c[i] += mean[i];
      EXPECT_EQ(server.state.at("control")[i], static_cast<float>(c[i]));
      EXPECT_EQ(c[i], 0.5 * (controls[0][i] + controls[1][i])) << "round " << round;
    }
    Tensor device(*backend, 1, width);
    backend->copy_to_device(device.view().data, server.state.at("control").data(), n * sizeof(float));
    server_state["control"] = device;
  }
}

TEST(Scaffold, CountsTheClientsThatWereNotSampled) {
  const auto method = make("scaffold");
  ServerState server{{0, 0}, {}, {}};
  const Means means{{"control_change", {8, -4}}};
  method->update_server(server, {any_layout(), 1, 0, 8, 2, std::vector<float>{1, 1}, means});
  EXPECT_EQ(server.state.at("control"), (std::vector<float>{2, -1}));
  const Traffic traffic = method->traffic({any_layout()});
  EXPECT_EQ(traffic.up, 2 * any_layout().shared_size());
  EXPECT_EQ(traffic.down, 2 * any_layout().shared_size());
}

TEST(RoLora, TrainsAndAveragesBFirst) {
  const auto method = make("rolora");
  const std::vector<Phase> scheduled{{4, {Group::lora_a, Group::lora_b, Group::head}}};
  EXPECT_EQ(method->plan_round(1, scheduled)[0].trainable, (std::vector<Group>{Group::lora_b, Group::head}));
  EXPECT_EQ(method->plan_round(2, scheduled)[0].trainable, (std::vector<Group>{Group::lora_a, Group::head}));
  const ParameterLayout& layout = any_layout();
  const ParameterRange a = layout.range(Group::lora_a), b = layout.range(Group::lora_b);
  const std::vector<float> average(layout.shared_size(), 5.0f);
  for (int round : {1, 2}) {
    ServerState server{std::vector<float>(layout.shared_size(), 1.0f), {}, {}};
    method->update_server(server, round_with(average, round));
    EXPECT_EQ(server.values[a.begin], round == 1 ? 1.0f : 5.0f);
    EXPECT_EQ(server.values[a.end - 1], round == 1 ? 1.0f : 5.0f);
    EXPECT_EQ(server.values[b.begin], round == 1 ? 5.0f : 1.0f);
    EXPECT_EQ(server.values[b.end - 1], round == 1 ? 5.0f : 1.0f);
    EXPECT_EQ(method->traffic({layout, round}).up, round == 1 ? b.size() : a.size());
    EXPECT_EQ(method->traffic({layout, round}).down, round == 1 ? b.size() : a.size());
  }
}

/// What is shared travels up and down; of FedSA and FFA that is one factor of the two.
TEST(Traffic, IsWhatIsShared) {
  const ModelConfig config = tiny_config();
  for (const char* name :
       {"fedavg", "fedprox", "fedavgm", "fedadam", "fedrep", "ditto", "ffa-lora", "fedsa-lora", "local"}) {
    const auto method = make(name);
    const ParameterLayout layout(config, {}, method->shared_groups());
    std::size_t shared = any_layout().range(Group::lora_a).size() + any_layout().range(Group::lora_b).size();
    if (name == std::string("ffa-lora")) shared = any_layout().range(Group::lora_b).size();
    if (name == std::string("fedsa-lora")) shared = any_layout().range(Group::lora_a).size();
    if (name == std::string("local")) shared = 0;
    EXPECT_EQ(method->traffic({layout}).up, shared) << name;
    EXPECT_EQ(method->traffic({layout}).down, shared) << name;
  }
}

TEST(FfaLora, NeverTrainsA) {
  const std::vector<Phase> plan =
      make("ffa-lora")->plan_round(3, {{4, {Group::lora_a, Group::lora_b}}, {2, {Group::lora_a}}});
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].trainable, std::vector<Group>{Group::lora_b});
}

}  // namespace
}  // namespace fedpdpo::test
