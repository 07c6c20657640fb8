// A method of one's own: this file and a registration are all that it takes. The server goes half of the way from x to
// the average of B, and A stays with its client.
#include <gtest/gtest.h>

#include "federation_kit.hpp"

namespace fedpdpo::test {
namespace {

class Halfway : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override { return {Group::lora_b}; }
  void update_server(ServerState& server, const ServerRound& round) const override {
    for (std::size_t i = 0; i < server.values.size(); ++i)
      server.values[i] += 0.5f * (round.average[i] - server.values[i]);
  }
};

const std::string name = "toy-halfway";

void register_once() {
  if (find_method(name)) return;
  register_method({name, "B half of the way to its average, A private", "-", [](RunOptions& o) { o.batch = 2; },
                   [](const RunOptions&) { return std::make_unique<Halfway>(); }});
}

TEST(ToyMethod, IsLookedUpLikeAnyOther) {
  register_once();
  const MethodInfo* info = find_method(name);
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(&methods().back(), info);
  EXPECT_NE(find_method("fedavg"), nullptr);
  EXPECT_CONTRACT_VIOLATION(register_method(*info), "a method of this name is registered");
  EXPECT_CONTRACT_VIOLATION(register_method(*find_method("fedavg")), "a method of this name is registered");
  RunOptions options;
  info->defaults(options);
  EXPECT_EQ(options.batch, 2);
  const auto method = info->make(options);
  ServerState server{{1, -2}, {}, {}};
  const std::map<std::string, std::vector<float>> no_means;
  const std::vector<float> average{3, 2};
  AdapterOptions adapter;
  const ParameterLayout layout(GoldenModel("tiny_llama").folder.config(), adapter, method->shared_groups());
  method->update_server(server, {.layout = layout, .average = average, .means = no_means});
  EXPECT_EQ(server.values, (std::vector<float>{2, 0}));
  EXPECT_EQ(method->traffic({layout}).up, layout.range(Group::lora_b).size());
}

/// Two clients of 4 and 12 train pairs: x goes half of the way to y_0 / 4 + 3 y_1 / 4.
TEST(ToyMethod, RunsAFederation) {
  register_once();
  FederationKit kit(name, {4, 12}, 3);
  kit.run();
  for (int round = 1; round <= 2; ++round) {
    const std::vector<float>& x = kit.received(0, round);
    ASSERT_EQ(x.size(), kit.layout->range(Group::lora_b).size());
    EXPECT_EQ(kit.received(1, round), x);
    const std::vector<float> expected =
        weighted({{0.5, x}, {0.125, kit.result(0, round)}, {0.375, kit.result(1, round)}});
    expect_all_near(kit.received(0, round + 1), expected);
    EXPECT_GT(norm_of_difference(kit.received(0, round + 1), x), 1e-3) << "training moved nothing";
    for (int client : {0, 1})
      EXPECT_EQ(kit.part(kit.spy->first.at({client, round + 1}).values, Group::lora_a),
                kit.part(kit.spy->last.at({client, round}).values, Group::lora_a));
  }
  EXPECT_EQ(kit.results->required_attribute<std::string>("/", "status"), "complete");
  const auto bytes = 4.0 * static_cast<double>(kit.layout->shared_size());
  EXPECT_EQ(kit.read("/rounds/train/bytes_up"), (std::vector<double>{0, 2 * bytes, 2 * bytes, 2 * bytes}));
  EXPECT_EQ(kit.read("/rounds/train/pairs"), (std::vector<double>{0, 12, 12, 12})) << "three steps of two, two clients";
}

}  // namespace
}  // namespace fedpdpo::test
