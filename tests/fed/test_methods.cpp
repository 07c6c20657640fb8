// The registry, what each method shares and does, and FedProx's gradient by hand.
#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <set>

#include "fedpdpo/fed/option_names.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "fedpdpo/fed/stop_signal.hpp"
#include "fedpdpo/model/weights.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

std::unique_ptr<FederatedMethod> make(const std::string& name, const RunOptions& options = {}) {
  const MethodInfo* info = find_method(name);
  if (!info) throw std::runtime_error("no method " + name);
  return info->make(options);
}

const std::vector<Group> lora{Group::lora_a, Group::lora_b};
const std::map<std::string, std::vector<float>> no_means;

ModelConfig tiny_config() {
  return read_model_config(std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests" / "golden" / "tiny_llama");
}

TEST(Registry, NamesAreUniqueAndDescribed) {
  std::set<std::string> names;
  for (const MethodInfo& method : methods()) {
    EXPECT_TRUE(names.insert(method.name).second) << method.name;
    EXPECT_FALSE(method.summary.empty()) << method.name;
    EXPECT_FALSE(method.citation.empty()) << method.name;
    EXPECT_EQ(find_method(method.name), &method);
    EXPECT_NE(method.make({}), nullptr);
  }
  EXPECT_EQ(find_method("fedpdp"), nullptr);
  EXPECT_EQ(find_method(""), nullptr);
}

/// The modules that a method's clients have by default, as options.
using Options = std::map<std::string, std::string>;
const Options lora_alone{};
const Options adaptive{{"server-lr", "0.01"}};
const Options private_head{{"head", "full"}};
const Options all_modules{{"head", "full"}, {"bottleneck", "16"}, {"reward-head", "on"}};

struct Expected {
  std::string name;
  Options defaults;  ///< what differs from RunOptions{}; all else, beta .1, lambda 1, mu .5 among it, does not
  std::vector<Group> shared;
  DataScope scope;
};

const std::vector<Group> everything{Group::lora_a, Group::lora_b, Group::bottleneck, Group::head, Group::reward};
const Expected table[] = {
    {"local", lora_alone, {}, DataScope::own},
    {"local-pdpo", all_modules, {}, DataScope::own},
    {"private-only", all_modules, {}, DataScope::own},
    {"centralized", lora_alone, everything, DataScope::pooled},
    {"fedavg", lora_alone, lora, DataScope::own},
    {"fedper", private_head, lora, DataScope::own},
    {"fedprox", lora_alone, lora, DataScope::own},
    {"fedpdpo", all_modules, lora, DataScope::own},
    {"fedavg-ft", {{"refit", "4"}}, lora, DataScope::own},
    {"fedrep", {{"head", "full"}, {"schedule", "alternate"}}, lora, DataScope::own},
    {"scaffold", lora_alone, lora, DataScope::own},
    {"fedavgm", lora_alone, lora, DataScope::own},
    {"fedadagrad", adaptive, lora, DataScope::own},
    {"fedyogi", adaptive, lora, DataScope::own},
    {"fedadam", adaptive, lora, DataScope::own},
    {"ffa-lora", lora_alone, {Group::lora_b}, DataScope::own},
    {"fedsa-lora", lora_alone, {Group::lora_a}, DataScope::own},
    {"rolora", lora_alone, lora, DataScope::own},
    {"fedex-lora", lora_alone, lora, DataScope::own},
    {"flora", lora_alone, lora, DataScope::own},
    {"ditto", {{"personal-lora", "ditto"}}, lora, DataScope::own},
    {"apfl", {{"personal-lora", "apfl"}}, lora, DataScope::own},
    {"feddpa", {{"personal-lora", "feddpa"}}, lora, DataScope::own},
};

TEST(Methods, AreWhatTheDesignSays) {
  const Options plain = describe(RunOptions{});
  EXPECT_EQ(plain.at("beta"), "0.1");
  EXPECT_EQ(plain.at("lambda"), "1");
  EXPECT_EQ(plain.at("mu"), "0.5");
  for (const Expected& expected : table) {
    const MethodInfo* info = find_method(expected.name);
    ASSERT_NE(info, nullptr) << expected.name;
    RunOptions options;
    info->defaults(options);
    Options changed;
    for (const auto& [option, value] : describe(options))
      if (plain.at(option) != value) changed[option] = value;
    EXPECT_EQ(changed, expected.defaults) << expected.name;
    const auto method = info->make(options);
    EXPECT_EQ(method->shared_groups(), expected.shared) << expected.name;
    EXPECT_EQ(method->data_scope(), expected.scope) << expected.name;
  }
}

TEST(Methods, TrainAsScheduledAndTakeTheAverage) {
  const std::vector<Phase> scheduled{{2, {Group::head}}, {3, lora}};
  const std::vector<float> average{1, -2, 3};
  for (const char* name : {"local", "local-pdpo", "centralized", "fedavg", "fedper", "fedprox", "fedpdpo", "fedrep",
                           "fedavg-ft", "ditto", "apfl", "feddpa", "fedsa-lora", "fedex-lora"}) {
    const auto method = make(name);
    for (int round : {1, 2, 7}) {
      const std::vector<Phase> plan = method->plan_round(round, scheduled);
      ASSERT_EQ(plan.size(), 2u) << name;
      EXPECT_EQ(plan[0].steps, 2);
      EXPECT_EQ(plan[1].steps, 3);
      EXPECT_EQ(plan[1].trainable, lora);
    }
    ServerState server{{9, 9, 9}, {}, {}};
    const ParameterLayout layout(tiny_config(), {}, method->shared_groups());
    method->update_server(server, {.layout = layout, .average = average, .means = no_means});
    EXPECT_EQ(server.values, average) << name;
    EXPECT_TRUE(server.state.empty());
  }
}

TEST(Methods, NothingTravelsWhereThePairsLieInOnePlace) {
  const auto method = make("centralized");
  const ParameterLayout layout(tiny_config(), {}, method->shared_groups());
  const Traffic traffic = method->traffic({layout});
  EXPECT_GT(layout.shared_size(), 0u);
  EXPECT_EQ(traffic.up, 0u);
  EXPECT_EQ(traffic.down, 0u);
}

/// The table above has every method but our own, which is free to change its modules.
TEST(Methods, AreAllInTheTable) {
  std::set<std::string> expected{"fedconcord"}, found;
  for (const Expected& method : table) expected.insert(method.name);
  for (const MethodInfo& method : methods()) found.insert(method.name);
  for (const std::string& name : expected) EXPECT_TRUE(found.contains(name)) << name;
  for (const std::string& name : found) EXPECT_TRUE(expected.contains(name) || name.starts_with("toy")) << name;
}

/// FedEx-LoRA and FLoRA alone add to the frozen weights, and FLoRA alone begins each round with a fresh LoRA.
TEST(Methods, ThatMoveTheBackbone) {
  for (const MethodInfo& info : methods()) {
    if (info.name.starts_with("toy")) continue;
    const auto method = info.make({});
    EXPECT_EQ(method->moves_backbone(), info.name == "fedex-lora" || info.name == "flora") << info.name;
    EXPECT_EQ(method->restarted_groups(), info.name == "flora" ? lora : std::vector<Group>{}) << info.name;
    EXPECT_EQ(method->refits_everything(), info.name == "fedavg-ft") << info.name;
  }
}

/// What does not go together, each with a reason; everything else does.
TEST(Methods, RefuseWhatIsSenseless) {
  using enum Feature;
  const std::set<Feature> all{groups, found_groups, personal_lora, lora_ranks, privacy, compression, new_clients};
  const std::map<std::string, std::set<Feature>> expected{
      {"local", all},
      {"local-pdpo", all},
      {"private-only", all},
      {"centralized", all},
      {"scaffold", {found_groups, lora_ranks, privacy}},
      {"rolora", {lora_ranks, compression}},
      {"fedex-lora", {found_groups, lora_ranks, personal_lora, privacy}},
      {"fedconcord", {lora_ranks, privacy}},
      {"flora", {found_groups, personal_lora, privacy, compression}},
  };
  for (const MethodInfo& info : methods()) {
    if (info.name.starts_with("toy")) continue;
    const auto method = info.make({});
    std::set<Feature> refused;
    for (Feature feature : all)
      if (!method->refuses(feature).empty()) refused.insert(feature);
    const auto found = expected.find(info.name);
    EXPECT_EQ(refused, found == expected.end() ? std::set{lora_ranks} : found->second) << info.name;
  }
}

/// LoRA stays at its start under either schedule, and no phase is left without anything to train.
TEST(Methods, PrivateOnlyNeverTrainsLora) {
  const std::vector<Group> own{Group::bottleneck, Group::head, Group::reward};
  const std::vector<std::vector<Phase>> schedules{{{4, everything}}, {{2, own}, {2, lora}}};
  for (const std::vector<Phase>& scheduled : schedules) {
    const std::vector<Phase> plan = make("private-only")->plan_round(3, scheduled);
    ASSERT_FALSE(plan.empty());
    for (const Phase& phase : plan) EXPECT_EQ(phase.trainable, own);
  }
}

/// g + mu (y - x) over the shared span, the rest as it was; mu 0 leaves every bit.
TEST(FedProx, AddsTheProximalGradient) {
  const ModelConfig config = tiny_config();
  AdapterOptions adapter;
  adapter.reward_head = true;
  const auto backend = make_cpu_backend({});
  RunOptions options;
  for (const double mu : {0.5, 0.25, 0.0}) {
    options.prox_mu = mu;
    for (const char* name : {"fedprox", "fedavg"}) {
      const auto method = make(name, options);
      const ParameterLayout layout(config, adapter, method->shared_groups());
      ASSERT_LT(layout.shared_size(), layout.size());
      std::vector<float> x(layout.shared_size()), y(layout.size()), g(layout.size()), expected(layout.size());
      for (std::size_t i = 0; i < y.size(); ++i) {
        y[i] = 0.5f * static_cast<float>(i % 7);
        g[i] = 0.125f * static_cast<float>(i % 5) - 0.25f;
        expected[i] = g[i];
        if (i >= x.size()) continue;
        x[i] = 0.25f * static_cast<float>(i % 3);
        if (std::string(name) == "fedprox") expected[i] += static_cast<float>(mu) * (y[i] - x[i]);
      }
      const auto n = static_cast<std::int64_t>(y.size());
      std::map<std::string, Tensor> state;
      method->adjust_gradient({.backend = *backend,
                               .layout = layout,
                               .server = view_of(x.data(), 1, static_cast<std::int64_t>(x.size())),
                               .values = view_of(y.data(), 1, n),
                               .gradient = view_of(g.data(), 1, n),
                               .state = state,
                               .server_state = state});
      EXPECT_EQ(g, expected) << name << ", mu " << mu;  // all numbers are exact in binary
      EXPECT_TRUE(state.empty());
    }
  }
}

TEST(StopSignal, IsSeenAndCanBeTakenBack) {
  EXPECT_FALSE(stop_requested());
  set_stop_requested(true);
  EXPECT_TRUE(stop_requested());
  set_stop_requested(false);
  watch_stop_signals();
  for (int signal : {SIGTERM, SIGUSR1}) {
    EXPECT_FALSE(stop_requested());
    std::raise(signal);
    EXPECT_TRUE(stop_requested());
    set_stop_requested(false);
  }
  for (int signal : {SIGTERM, SIGUSR1}) std::signal(signal, SIG_DFL);
}

}  // namespace
}  // namespace fedpdpo::test
