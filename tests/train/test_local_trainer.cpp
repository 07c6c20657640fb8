// LocalTrainer: which pairs a step draws, and that neither cohort, micro-batches nor phases change the mathematics.
#include <limits>
#include <set>

#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

/// The pairs that `steps` steps of one pair each draw: every pair has its own number of tokens.
std::vector<std::size_t> drawn(TrainerKit& kit, int client, int steps, std::initializer_list<int> together = {}) {
  std::vector<std::size_t> order;
  ClientState& state = kit.states[static_cast<std::size_t>(client)];
  for (int i = 0; i < steps; ++i) {
    const double before = state.sums.tokens;
    if (together.size() > 0) {
      kit.step(together, 1, std::span(&private_groups[2], 1));
    } else {
      kit.step({client}, 1, std::span(&private_groups[2], 1));
    }
    const auto tokens = static_cast<std::size_t>(state.sums.tokens - before);
    std::size_t pair = 0;
    while (kit.pairs.files[0].num_tokens(pair) != tokens) ++pair;
    order.push_back(pair);
  }
  return order;
}

AdapterOptions reward_only() {
  AdapterOptions o;
  o.lora_rank = 0;
  o.reward_head = true;
  return o;
}

TEST(Batches, ArePermutationsByEpoch) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(7, 1);
  TrainerOptions options = smooth_options();
  options.batch = 1;
  TrainerKit kit(model, pairs, reward_only(), options, 2, 2);
  const std::vector<std::size_t> order = drawn(kit, 0, 21);
  std::set<std::vector<std::size_t>> epochs;
  for (auto begin = order.begin(); begin != order.end(); begin += 7) {
    const std::vector<std::size_t> epoch(begin, begin + 7);
    EXPECT_EQ(std::set(epoch.begin(), epoch.end()).size(), 7u) << "a pair came twice in an epoch";
    epochs.insert(epoch);
  }
  EXPECT_EQ(epochs.size(), 3u) << "epochs are shuffled anew";
  EXPECT_EQ(kit.states[0].pairs_drawn, 21);

  TrainerKit again(model, pairs, reward_only(), options, 2, 2);
  EXPECT_EQ(drawn(again, 0, 21, {0, 1}), order) << "another client in the cohort changed the order";
  TrainerKit resumed(model, pairs, reward_only(), options, 2, 2);
  resumed.states[0].pairs_drawn = 10;
  EXPECT_EQ(drawn(resumed, 0, 11), std::vector(order.begin() + 10, order.end()));
  EXPECT_NE(drawn(resumed, 1, 7), std::vector(order.begin(), order.begin() + 7)) << "clients draw alike";
  options.seed = 10;
  TrainerKit other(model, pairs, reward_only(), options, 2, 2);
  EXPECT_NE(drawn(other, 0, 21), order) << "the seed did not reach the batches";
}

TEST(Batches, RunOnOverTheEndOfAnEpoch) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(5, 1);
  TrainerOptions options = smooth_options();
  options.batch = 3;
  TrainerKit kit(model, pairs, reward_only(), options, 1, 1);
  for (int i = 0; i < 5; ++i) kit.step({0});
  double tokens = 0;
  for (std::size_t i = 0; i < 5; ++i) tokens += static_cast<double>(pairs.files[0].num_tokens(i));
  EXPECT_EQ(kit.states[0].sums.tokens, 3 * tokens);
  EXPECT_EQ(kit.states[0].sums.pairs, 15);
}

/// Gradients as the hook sees them, by client.
std::vector<std::vector<float>> gradients_of(TrainerKit& kit, std::initializer_list<int> clients) {
  std::vector<std::vector<float>> all(kit.states.size());
  kit.step(clients, 1, all_groups, [&](const Member& member, ConstView, View g) {
    const std::span<float> row = TrainerKit::row(g);
    all[static_cast<std::size_t>(member.state->client)].assign(row.begin(), row.end());
  });
  return all;
}

double largest_error_by_group(const TrainerKit& kit, std::span<const float> found, std::span<const float> expected) {
  double largest = 0;
  for (Group group : all_groups)
    if (kit.layout.has(group) && group != Group::reward)
      largest = std::max(largest, relative_error(kit.part(found, group), kit.part(expected, group)));
  // The reward's bias has no gradient but for rounding: the group is compared as a whole.
  return std::max(largest, relative_error(kit.part(found, Group::reward), kit.part(expected, Group::reward)));
}

struct Variant {
  std::string name;
  double dropout;
  int micro_rows;
};

class TheSame : public testing::TestWithParam<Variant> {};

/// Two clients in lock-step give each what it has alone. With dropout too: a member's masks follow its own rows.
TEST_P(TheSame, InACohortAsOneByOne) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(9, 2);
  AdapterOptions adapter = full_adapter();
  adapter.lora_dropout = GetParam().dropout;
  TrainerOptions options = smooth_options();
  options.micro_rows = GetParam().micro_rows;
  TrainerKit alone(model, pairs, adapter, options, 2, 1), together(model, pairs, adapter, options, 2, 2);
  const auto first = gradients_of(alone, {0});
  const auto second = gradients_of(alone, {1});
  const auto both = gradients_of(together, {1, 0});
  EXPECT_LT(largest_error_by_group(alone, both[0], first[0]), 1e-5);
  EXPECT_LT(largest_error_by_group(alone, both[1], second[1]), 1e-5);
  EXPECT_GT(relative_error(both[0], both[1]), 0.1) << "the clients are all but alike";
  const std::vector<float> before = alone.copy(0);
  for (int i = 0; i < 2; ++i) {
    alone.step({0});
    alone.step({1});
    together.step({1, 0});
  }
  for (int client : {0, 1}) {
    EXPECT_LT(relative_error(together.values(client), alone.values(client)), 1e-5);
    EXPECT_NEAR(together.states[static_cast<std::size_t>(client)].sums.loss,
                alone.states[static_cast<std::size_t>(client)].sums.loss, 1e-4);
  }
  EXPECT_GT(relative_error(before, alone.values(0)), 1e-3) << "training moved nothing";
}

TEST_P(TheSame, InMicroBatchesAsInOne) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(9, 2);
  AdapterOptions adapter = full_adapter();
  adapter.lora_dropout = GetParam().dropout;
  TrainerOptions whole = smooth_options(), cut = smooth_options();
  whole.micro_rows = 100000;
  cut.micro_rows = GetParam().micro_rows;
  TrainerKit one(model, pairs, adapter, whole, 1, 1), many(model, pairs, adapter, cut, 1, 1);
  EXPECT_LT(largest_error_by_group(one, gradients_of(many, {0})[0], gradients_of(one, {0})[0]), 1e-5);
  for (int i = 0; i < 3; ++i) {
    one.step({0});
    many.step({0});
  }
  EXPECT_LT(relative_error(many.values(0), one.values(0)), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Variants, TheSame,
                         testing::Values(Variant{"one_pair_a_pass", 0, 1}, Variant{"two_pairs_a_pass", 0, 45},
                                         Variant{"dropout", 0.3, 1}, Variant{"dropout_two_pairs", 0.3, 45}),
                         [](const auto& i) { return i.param.name; });

TrainerOptions kto_options(int micro_rows) {
  TrainerOptions options = smooth_options();
  options.batch = 9;  // the first step is a whole epoch of nine pairs
  options.micro_rows = micro_rows;
  options.loss.kind = "kto";
  return options;
}

/// A reference under which both KLs of nine random pairs are positive.
void lower_reference(TrainerKit& kit) {
  for (ClientPair& pair : kit.train) {
    pair.reference_chosen -= 3;
    pair.reference_rejected -= 3;
  }
}

Evaluation evaluated(TrainerKit& kit, std::span<const ClientPair> pairs, int micro_rows) {
  return kit.evaluate({0, pairs}, kto_options(1).loss, micro_rows);
}

/// kto's KLs are those of a client's whole step, whatever the cuts, the cohort and dropout: the step's loss is that of
/// an evaluation of the same pairs in one pass, which a KL of single passes would not give.
TEST(Kto, StatisticsAreOfTheWholeBatchOfAClient) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(9, 2);
  TrainerKit kit(model, pairs, full_adapter(), kto_options(1), 1, 1);
  lower_reference(kit);
  const double whole = 9 * evaluated(kit, kit.train, 1024).loss;
  double largest = 0, smallest = 9;
  for (const ClientPair& pair : kit.train) {
    const double alone = evaluated(kit, {&pair, 1}, 64).loss;
    smallest = std::min(smallest, alone);
    largest = std::max(largest, alone);
  }
  ASSERT_GT(largest - smallest, 1e-2);

  const auto sum_of_step = [&](int micro_rows, std::initializer_list<int> clients, double dropout) {
    AdapterOptions adapter = full_adapter();
    adapter.lora_dropout = dropout;
    TrainerKit cut(model, pairs, adapter, kto_options(micro_rows), 2, 2);
    lower_reference(cut);
    cut.step(clients);
    return cut.states[0].sums.loss;
  };
  for (const int micro_rows : {1, 45, 100000}) {
    EXPECT_NEAR(9 * evaluated(kit, kit.train, micro_rows).loss, whole, 1e-5 * whole) << micro_rows;
    EXPECT_NEAR(sum_of_step(micro_rows, {0}, 0), whole, 1e-5 * whole) << micro_rows;
    EXPECT_NEAR(sum_of_step(micro_rows, {1, 0}, 0), whole, 1e-5 * whole) << micro_rows;
    EXPECT_NEAR(sum_of_step(micro_rows, {1, 0}, 0.3), sum_of_step(100000, {0}, 0.3), 1e-5 * whole) << micro_rows;
  }
}

TEST(Kto, GradientsDoNotDependOnCutsOrCohort) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(9, 2);
  TrainerKit alone(model, pairs, full_adapter(), kto_options(100000), 2, 1);
  TrainerKit together(model, pairs, full_adapter(), kto_options(1), 2, 2);
  lower_reference(alone);
  lower_reference(together);
  const auto expected = gradients_of(alone, {0});
  EXPECT_LT(largest_error_by_group(alone, gradients_of(together, {1, 0})[0], expected[0]), 1e-5);
}

TEST(Phases, FrozenGroupsDoNotMove) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  for (const Group trained : all_groups) {
    TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
    const std::vector<float> before = kit.copy(0);
    for (int i = 0; i < 2; ++i) kit.step({0}, 1, std::span(&trained, 1));
    for (const Group group : all_groups) {
      const bool moved = !same_bits(kit.part(kit.values(0), group), kit.part(before, group));
      EXPECT_EQ(moved, group == trained) << group_name(group) << " while " << group_name(trained) << " trained";
      const std::span<const float> moment = kit.part(kit.first_moment(0), group);
      const bool has_moment = std::any_of(moment.begin(), moment.end(), [](float x) { return x != 0; });
      EXPECT_EQ(has_moment, group == trained) << group_name(group);
      EXPECT_EQ(kit.states[0].adam_steps[static_cast<std::size_t>(group)], group == trained ? 2 : 0);
    }
  }
}

TEST(Phases, AlternateMovesOnePartAfterTheOther) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
  const std::vector<float> start = kit.copy(0);
  const auto moved = [&](const std::vector<float>& since, Group group) {
    return !same_bits(kit.part(kit.values(0), group), kit.part(since, group));
  };
  for (int i = 0; i < 2; ++i) kit.step({0}, 1, private_groups);
  for (Group group : private_groups) EXPECT_TRUE(moved(start, group)) << group_name(group);
  for (Group group : lora_groups) EXPECT_FALSE(moved(start, group)) << group_name(group);
  EXPECT_EQ(kit.states[0].sums.gradient_norm_shared, 0);
  EXPECT_GT(kit.states[0].sums.gradient_norm_private, 0);
  const std::vector<float> middle = kit.copy(0);
  kit.step({0}, 1, lora_groups);
  for (Group group : private_groups) EXPECT_FALSE(moved(middle, group)) << group_name(group);
  for (Group group : lora_groups) EXPECT_TRUE(moved(middle, group)) << group_name(group);
  EXPECT_GT(kit.states[0].sums.gradient_norm_shared, 0);
  const auto steps = kit.states[0].adam_steps;
  EXPECT_EQ(steps, (std::array<std::int64_t, num_groups>{1, 1, 2, 2, 2}));
}

/// At the start B is 0, so that A has no gradient: only B learns in the first step.
TEST(Phases, FirstStepMovesBAlone) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1, Start::initial);
  const std::vector<float> start = kit.copy(0);
  kit.step({0}, 1, lora_groups);
  EXPECT_TRUE(same_bits(kit.part(kit.values(0), Group::lora_a), kit.part(start, Group::lora_a)));
  EXPECT_FALSE(same_bits(kit.part(kit.values(0), Group::lora_b), kit.part(start, Group::lora_b)));
}

TEST(NonFinite, LeavesItsClientWhereItWasAndMarksIt) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 2, 2);
  kit.values(0)[kit.layout.range(Group::reward).begin] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> broken = kit.copy(0), sound = kit.copy(1);
  kit.step({0, 1});
  EXPECT_TRUE(same_bits(kit.values(0), broken));
  for (float x : kit.first_moment(0)) ASSERT_EQ(x, 0);
  EXPECT_FALSE(kit.states[0].sums.finite);
  EXPECT_EQ(kit.states[0].sums.steps, 1);
  EXPECT_EQ(kit.states[0].adam_steps, (std::array<std::int64_t, num_groups>{}));
  EXPECT_TRUE(kit.states[1].sums.finite) << "the other member of the cohort was marked";
  EXPECT_FALSE(same_bits(kit.values(1), sound)) << "the other member of the cohort did not train";
  for (float x : kit.values(1)) ASSERT_TRUE(std::isfinite(x));

  kit.values(0)[kit.layout.range(Group::reward).begin] = 0;
  kit.step({0});
  EXPECT_FALSE(kit.states[0].sums.finite) << "the mark lasts for the round";
  EXPECT_EQ(kit.states[0].adam_steps[0], 1) << "later steps count from the first good one";
}

TEST(NonFinite, OfFrozenGroupsDoesNotCount) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const Group group : {Group::lora_b, Group::head}) {
      TrainerKit kit(model, pairs, full_adapter(), smooth_options(), 1, 1);
      kit.step({0}, 1, lora_groups,
               [&](const Member&, ConstView, View g) { TrainerKit::row(g)[kit.layout.range(group).begin] = bad; });
      EXPECT_EQ(kit.states[0].sums.finite, group == Group::head) << group_name(group);
    }
  }
}

TEST(Cohort, TakesNoMoreMembersThanItHasGradients) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit kit(model, pairs, reward_only(), smooth_options(), 2, 1);
  EXPECT_CONTRACT_VIOLATION(kit.step({0, 1}), "more members than the cohort has slots");
}

TEST(RoundSums, PackAndUnpack) {
  RoundSums sums{1.5, 2, 3, 4, 5, 6.25, 7, false};
  const RoundSums back = RoundSums::unpack(sums.pack());
  EXPECT_EQ(back.pack(), sums.pack());
  EXPECT_FALSE(back.finite);
  sums.finite = true;
  EXPECT_TRUE(RoundSums::unpack(sums.pack()).finite);
  EXPECT_EQ(sums.pack(), (std::array<double, 8>{1.5, 2, 3, 4, 5, 6.25, 7, 1}));
}

}  // namespace
}  // namespace fedpdpo::test
