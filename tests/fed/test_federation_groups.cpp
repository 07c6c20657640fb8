// Whole federations in several aggregation groups, and what is evaluated at their end.
#include <gtest/gtest.h>

#include <cmath>

#include "federation_kit.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;

/// Clients own the same train pairs and take all of them in every step: but for rounding, updates of equal preferences
/// are equal, and first updates of B are opposite for clients whose preferences are flipped.
struct Camps : FederationKit {
  Camps(const std::string& method, const std::vector<bool>& flipped, int rounds = 2)
      : FederationKit(method, std::vector<int>(flipped.size(), 4), rounds) {
    for (std::size_t c = 0; c < flipped.size(); ++c) {
      partition.clients[c].pairs[0] = partition.clients[0].pairs[0];
      partition.clients[c].flipped = flipped[c];
    }
    options.steps = 1;
  }
};

std::vector<double> groups_of(const FederationKit& kit, int round) {
  const std::vector<double> all = kit.read("/clients/train/group");
  const auto n = static_cast<std::ptrdiff_t>(kit.partition.clients.size());
  return {all.begin() + round * n, all.begin() + (round + 1) * n};
}

/// Labels 5, 1, 5: each group's x is the average of its own clients, and the other's never comes in.
TEST(Groups, ByLabelsAverageApart) {
  FederationKit kit("fedavg", {4, 8, 12});
  kit.options.groups = GroupKind::clusters;
  kit.options.cluster_labels = {5, 1, 5};
  kit.run();
  expect_all_near(kit.received(0, 2), weighted({{0.25, kit.result(0, 1)}, {0.75, kit.result(2, 1)}}));
  EXPECT_EQ(kit.received(2, 2), kit.received(0, 2));
  EXPECT_EQ(kit.received(1, 2), kit.result(1, 1)) << "alone in its group";
  for (int round = 0; round <= 2; ++round) EXPECT_EQ(groups_of(kit, round), (std::vector<double>{1, 0, 1}));
}

/// clusters:2 without labels: one group until the first round's updates are in, which are then averaged apart already.
TEST(Groups, AreFoundFromTheFirstUpdates) {
  Camps kit("fedavg", {true, false, false, true, false});
  kit.options.groups = GroupKind::clusters;
  kit.options.num_clusters = 2;
  kit.run();
  EXPECT_EQ(groups_of(kit, 0), std::vector<double>(5, 0));
  for (int round : {1, 2}) EXPECT_EQ(groups_of(kit, round), (std::vector<double>{0, 1, 1, 0, 1}));
  expect_all_near(kit.received(0, 2), weighted({{0.5, kit.result(0, 1)}, {0.5, kit.result(3, 1)}}));
  const double third = 1 / 3.0;
  expect_all_near(kit.received(1, 2),
                  weighted({{third, kit.result(1, 1)}, {third, kit.result(2, 1)}, {third, kit.result(4, 1)}}));
  EXPECT_NE(kit.log.find("round 1: aggregation groups [0 3] [1 2 4]"), std::string::npos) << kit.log;
}

/// Everybody takes part in the round that clusters are found from, whatever participation says.
TEST(Groups, TheFirstRoundTakesEverybody) {
  Camps kit("fedavg", {true, false, false, true});
  kit.options.groups = GroupKind::clusters;
  kit.options.num_clusters = 2;
  kit.options.participation = 0.5;
  kit.run();
  EXPECT_EQ(kit.read("/rounds/train/participated"), (std::vector<double>{0, 4, 2})) << "then one of each group's two";
}

/// fedconcord: 5 against 5 are told apart; B is averaged within a camp and A over everybody.
TEST(FedConcord, AveragesBWithinACampAndAOverAll) {
  std::vector<bool> flipped(10);
  for (std::size_t c = 0; c < 10; c += 2) flipped[c] = true;
  Camps kit("fedconcord", flipped, 3);
  kit.run();
  std::vector<double> expected;
  for (int c = 0; c < 10; ++c) expected.push_back(c % 2);
  EXPECT_EQ(groups_of(kit, 1), expected);
  EXPECT_EQ(groups_of(kit, 2), expected);
  for (const Group group : {Group::lora_a, Group::lora_b})
    for (int c : {0, 1}) {
      std::vector<std::pair<double, Values>> terms;
      for (int k = 0; k < 10; ++k)
        if (group == Group::lora_a || k % 2 == c)
          terms.push_back({group == Group::lora_a ? 0.1 : 0.2, kit.part(kit.result(k, 2), group)});
      expect_all_near(kit.part(kit.received(c, 3), group), weighted(terms));
    }
  EXPECT_EQ(kit.part(kit.received(0, 3), Group::lora_a), kit.part(kit.received(1, 3), Group::lora_a));
  EXPECT_GT(
      norm_of_difference(kit.part(kit.received(0, 3), Group::lora_b), kit.part(kit.received(1, 3), Group::lora_b)),
      1e-2);
}

/// B of client 0 overflows in round 1.
class Overflowing : public FederatedMethod {
 public:
  std::vector<Group> shared_groups() const override { return {Group::lora_a, Group::lora_b}; }
  void adjust_step(const LocalStep& step) const override {
    if (step.client != 0 || step.round != 1) return;
    const auto b = static_cast<std::int64_t>(step.layout.range(Group::lora_b).begin);
    step.backend.fill(step.values.columns(b, b + 1), INFINITY);
  }
};

/// An update that is not finite is left out of the round and of the directions that groups are found from; its client
/// goes with the larger camp until it has a direction.
TEST(Groups, AnUpdateThatIsNotFiniteHasNoDirection) {
  const std::string name = "toy-overflowing";
  if (!find_method(name))
    register_method({name, "B of client 0 overflows in round 1", "-", [](RunOptions&) {},
                     [](const RunOptions&) { return std::make_unique<Overflowing>(); }});
  Camps kit(name, {true, false, true, false, true, false, true, false, true, false}, 3);
  kit.options.groups = GroupKind::agreement;
  kit.run();
  EXPECT_EQ(groups_of(kit, 1), (std::vector<double>{0, 0, 1, 0, 1, 0, 1, 0, 1, 0}));
  EXPECT_EQ(kit.read("/rounds/train/left_out"), (std::vector<double>{0, 1, 0, 0}));
  for (float x : kit.spy->last.at({0, 3}).state.at("grouping.direction")) ASSERT_TRUE(std::isfinite(x));
  for (double loss : kit.read("/clients/test/after/loss")) EXPECT_TRUE(std::isfinite(loss));
  expect_all_near(
      kit.received(2, 2),
      weighted(
          {{0.25, kit.result(2, 1)}, {0.25, kit.result(4, 1)}, {0.25, kit.result(6, 1)}, {0.25, kit.result(8, 1)}}));
}

/// Where all agree it is fedpdpo, to the bit.
TEST(FedConcord, WithoutAConflictIsFedPdpo) {
  FederationKit ours("fedconcord", {4, 12, 8}), theirs("fedpdpo", {4, 12, 8});
  ours.run();
  theirs.run();
  EXPECT_EQ(ours.spy->averages, theirs.spy->averages);
  EXPECT_EQ(ours.read("/clients/test/after/loss"), theirs.read("/clients/test/after/loss"));
}

/// Client 2 never trains: no group, no numbers in the rounds, met at the end. Models by row, data by column.
TEST(Newcomers, AreMetAtTheEnd) {
  FederationKit kit("fedpdpo", {4, 12, 6});
  kit.partition.clients[2].is_new = true;
  kit.options.partition.num_new_clients = 1;
  kit.options.new_client_steps = 5;
  kit.options.cross_eval = true;
  kit.run();
  EXPECT_EQ(kit.read("/clients/train/group")[2], -1);
  EXPECT_EQ(kit.read("/rounds/train/participated"), (std::vector<double>{0, 2, 2}));
  EXPECT_EQ(kit.spy->first.count({2, 1}), 0u);
  for (int round = 0; round <= 2; ++round)
    EXPECT_TRUE(std::isnan(kit.read("/clients/test/after/accuracy")[static_cast<std::size_t>(3 * round + 2)]));
  expect_all_near(kit.received(0, 2), weighted({{0.25, kit.result(0, 1)}, {0.75, kit.result(1, 1)}}));

  const std::string at = "/final/new_clients";
  EXPECT_EQ(kit.results->required_attribute<std::int64_t>(at, "steps"), 5);
  EXPECT_EQ(kit.results->read<std::int32_t>(at + "/client"), std::vector<std::int32_t>{2});
  EXPECT_EQ(kit.results->read<std::int32_t>(at + "/group"), std::vector<std::int32_t>{0});
  ASSERT_EQ(kit.read(at + "/accuracy_fitted").size(), 1u);
  EXPECT_TRUE(std::isfinite(kit.read(at + "/loss_fitted")[0]));

  const std::vector<double> cross = kit.read("/final/cross/accuracy");
  const std::vector<double> accuracy = kit.read("/clients/test/after/accuracy");
  ASSERT_EQ(cross.size(), 9u);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t j = 0; j < 3; ++j) {
      EXPECT_EQ(std::isnan(cross[3 * i + j]), i == 2) << "a client that never trained has no model";
      if (i == j && i < 2) {
        EXPECT_EQ(cross[3 * i + j], accuracy[6 + i]);
      }
    }
  const std::vector<std::int32_t> clients = kit.results->read<std::int32_t>("/final/test/client");
  EXPECT_EQ(clients, (std::vector<std::int32_t>{0, 0, 1, 1}));
}

/// Fitting moves the private modules alone: of a newcomer without any, the received model is the fitted one.
TEST(Newcomers, WithoutPrivateModulesStayAsReceived) {
  FederationKit kit("fedavg", {4, 12, 6});
  kit.partition.clients[2].is_new = true;
  kit.options.partition.num_new_clients = 1;
  kit.run();
  EXPECT_EQ(kit.read("/final/new_clients/accuracy_fitted"), kit.read("/final/new_clients/accuracy_received"));
}

/// Two camps with a LoRA each; the newcomer, of the second one's preferences, gets the second one's.
TEST(Newcomers, GetTheGroupThatExplainsTheirPairs) {
  for (const bool flipped : {false, true}) {
    Camps kit("fedavg", {false, true, flipped}, 4);
    kit.options.groups = GroupKind::clusters;
    kit.options.cluster_labels = {0, 1, 0};
    kit.partition.clients[2].is_new = true;
    kit.options.partition.num_new_clients = 1;
    kit.run();
    EXPECT_EQ(kit.results->read<std::int32_t>("/final/new_clients/group"), std::vector<std::int32_t>{flipped ? 1 : 0});
  }
}

}  // namespace
}  // namespace fedpdpo::test
