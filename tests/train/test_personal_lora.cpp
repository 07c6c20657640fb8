// Training and evaluation with a personal LoRA, with LoRA ranks of a client's own, and the embeddings that weigh an
// instance: each against a plain LoRA that says the same.
#include <cmath>

#include "trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

constexpr Group personal_groups[] = {Group::personal_a, Group::personal_b};

AdapterOptions two_loras() {
  AdapterOptions options = full_adapter();
  options.personal_lora = PersonalLora::ditto;
  return options;
}

/// Gradients of a step of client 0, as the hook sees them.
std::vector<float> gradient_of(TrainerKit& kit, std::span<const Group> trainable, Adapter adapter) {
  std::vector<float> result;
  const Member member = kit.member(0);
  kit.trainer.step(std::span(&member, 1), 1, trainable,
                   {[&](const Member&, ConstView, View g) {
                      const std::span<float> row = TrainerKit::row(g);
                      result.assign(row.begin(), row.end());
                    },
                    nullptr},
                   adapter);
  return result;
}

/// Copies the values of one group of a kit's client 0 to a group of another's.
void copy_group(TrainerKit& from, Group source, TrainerKit& to, Group target) {
  const std::span<const float> values = from.part(from.values(0), source);
  std::copy(values.begin(), values.end(),
            to.values(0).begin() + static_cast<std::ptrdiff_t>(to.layout.range(target).begin));
}

/// A kit without a personal LoRA whose only one has the values of one of the two.
struct Plain : TrainerKit {
  Plain(GoldenModel& m, const PairSet& set, TrainerKit& both, Adapter adapter)
      : TrainerKit(m, set, full_adapter(), smooth_options(), 1, 1) {
    for (Group group : private_groups) copy_group(both, group, *this, group);
    copy_group(both, group_a(adapter), *this, Group::lora_a);
    copy_group(both, group_b(adapter), *this, Group::lora_b);
  }
};

/// A step with either adapter is a step of a client that has that LoRA alone, to the bit.
TEST(PersonalLora, AStepIsThatOfItsAdapterAlone) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  for (const Adapter adapter : {Adapter::shared, Adapter::personal}) {
    TrainerKit both(model, pairs, two_loras(), smooth_options(), 1, 1);
    Plain plain(model, pairs, both, adapter);
    const Group trained[] = {group_a(adapter), group_b(adapter), Group::bottleneck, Group::head, Group::reward};
    const std::vector<float> found = gradient_of(both, trained, adapter);
    const std::vector<float> expected = gradient_of(plain, all_groups, Adapter::shared);
    EXPECT_TRUE(same_bits(both.part(found, trained[0]), plain.part(expected, Group::lora_a)));
    EXPECT_TRUE(same_bits(both.part(found, trained[1]), plain.part(expected, Group::lora_b)));
    for (Group group : private_groups) EXPECT_TRUE(same_bits(both.part(found, group), plain.part(expected, group)));
  }
}

TEST(PersonalLora, MovesAloneAndAtThePrivateRate) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerOptions options = smooth_options();
  options.optimizer.lr_shared = 0;
  TrainerKit kit(model, pairs, two_loras(), options, 1, 1);
  const std::vector<float> before = kit.copy(0);
  gradient_of(kit, personal_groups, Adapter::personal);
  for (int g = 0; g < num_groups; ++g) {
    const auto group = static_cast<Group>(g);
    const bool personal = group == Group::personal_a || group == Group::personal_b;
    EXPECT_EQ(same_bits(kit.part(kit.values(0), group), kit.part(before, group)), !personal) << group_name(group);
    EXPECT_EQ(kit.states[0].adam_steps[static_cast<std::size_t>(g)], personal ? 1 : 0) << group_name(group);
  }
  EXPECT_EQ(kit.states[0].sums.gradient_norm_shared, 0);
  EXPECT_GT(kit.states[0].sums.gradient_norm_private, 0);
}

std::vector<double> margins(TrainerKit& kit, Adapter adapter = Adapter::shared, float lora_weight = 1,
                            std::span<const float> personal_weights = {}, int micro_rows = 1024) {
  return kit.evaluate({0, kit.train, lora_weight, personal_weights}, {}, micro_rows, adapter).margin;
}

/// Pairs of weight 0 have the shared LoRA's margin, of weight 1 the personal one's, others neither, each alone whatever
/// it is packed with.
TEST(PersonalLora, AnEvaluationWeighsPairs) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit both(model, pairs, two_loras(), smooth_options(), 1, 1);
  Plain shared(model, pairs, both, Adapter::shared), personal(model, pairs, both, Adapter::personal);
  const std::vector<double> of_shared = margins(shared);
  const std::vector<double> of_personal = margins(personal);
  EXPECT_EQ(margins(both), of_shared);
  EXPECT_EQ(margins(both, Adapter::personal), of_personal);

  const std::vector<float> weights{0, 1, 0.5f, 0, 0.25f, 1};
  const std::vector<double> found = margins(both, Adapter::shared, 1, weights);
  for (std::size_t i = 0; i < 6; ++i) {
    // The other adapter adds zeros: only the order of two sums differs.
    if (weights[i] == 0) {
      EXPECT_NEAR(found[i], of_shared[i], 1e-5) << i;
    } else if (weights[i] == 1) {
      EXPECT_NEAR(found[i], of_personal[i], 1e-5) << i;
    } else {
      EXPECT_GT(std::abs(found[i] - of_shared[i]), 1e-4) << i;
      EXPECT_GT(std::abs(found[i] - of_personal[i]), 1e-4) << i;
    }
    EXPECT_GT(std::abs(of_shared[i] - of_personal[i]), 1e-3) << i;
  }
  for (const int micro_rows : {1, 40})
    EXPECT_EQ(margins(both, Adapter::shared, 1, weights, micro_rows), found) << micro_rows;
}

AdapterOptions rank_of(int rank) {
  AdapterOptions options;
  options.lora_rank = rank;
  options.lora_alpha = 8;
  return options;
}

/// A client of rank 2 in a layout of rank 4, at twice the scale alpha / 4, is a client of a layout of rank 2: the same
/// margins, the same gradients, the same steps; beyond its rank all stays zero.
TEST(RanksOfTheirOwn, AreASmallerLoraAtItsOwnScale) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit wide(model, pairs, rank_of(4), smooth_options(), 2, 2),
      narrow(model, pairs, rank_of(2), smooth_options(), 1, 1);
  wide.layout.truncate_rank(2, wide.values(0));
  wide.states[0].lora_weight = 2;
  // Elements of the narrow buffer, and where they lie in the wide one.
  std::vector<std::size_t> place;
  for (const Parameter& p : narrow.layout.parameters()) {
    const Parameter& q = wide.layout.parameters()[static_cast<std::size_t>(wide.layout.find(p.name))];
    for (std::int64_t i = 0; i < p.rows; ++i)
      for (std::int64_t j = 0; j < p.cols; ++j) place.push_back(q.offset + static_cast<std::size_t>(i * q.cols + j));
  }
  const auto used = [&](std::span<const float> all) {
    std::vector<float> part;
    for (std::size_t at : place) part.push_back(all[at]);
    return part;
  };
  const std::vector<float> start = used(wide.values(0));
  std::copy(start.begin(), start.end(), narrow.values(0).begin());
  const auto expect_same_margins = [&] {
    const std::vector<double> found = margins(wide, Adapter::shared, 2);
    const std::vector<double> expected = margins(narrow);
    for (std::size_t i = 0; i < 6; ++i) EXPECT_NEAR(found[i], expected[i], 1e-5) << i;
  };
  expect_same_margins();
  for (int step = 0; step < 3; ++step) {
    std::vector<float> found;
    // Beside client 1, whose rank is the layout's.
    wide.step({0, 1}, 1, lora_groups, [&](const Member& member, ConstView, View g) {
      const std::span<float> row = TrainerKit::row(g);
      if (member.state->client == 0) found.assign(row.begin(), row.end());
    });
    std::vector<float> expected;
    narrow.step({0}, 1, lora_groups, [&](const Member&, ConstView, View g) {
      const std::span<float> row = TrainerKit::row(g);
      expected.assign(row.begin(), row.end());
    });
    EXPECT_LT(relative_error(used(found), expected), 1e-5) << step;
  }
  EXPECT_LT(relative_error(used(wide.values(0)), narrow.copy(0)), 1e-5);
  EXPECT_GT(relative_error(narrow.copy(0), start), 1e-2) << "training moved nothing";
  expect_same_margins();
  double beyond = 0, whole = 0;
  for (float x : wide.values(0)) whole += std::abs(x);
  for (float x : used(wide.values(0))) beyond -= std::abs(x);
  EXPECT_NEAR(beyond + whole, 0, 1e-9 * whole) << "something beyond the rank moved";
}

/// The mean of the bare backbone's hidden states over a pair's rows: nothing that is trained counts, nor which response
/// is the chosen one, nor how pairs are packed.
TEST(Embeddings, AreOfTheBareBackbone) {
  GoldenModel model("tiny_llama");
  const PairSet pairs = random_pairs(6, 3);
  TrainerKit kit(model, pairs, two_loras(), smooth_options(), 1, 1),
      start(model, pairs, two_loras(), smooth_options(), 1, 1, Start::initial);
  const auto embeddings = [&](TrainerKit& k, std::span<const ClientPair> list, int micro_rows = 1024) {
    return embed_pairs(pairs, k.policy, k.buffers.parameters(), 0, list, micro_rows);
  };
  const std::vector<float> found = embeddings(kit, kit.train);
  ASSERT_EQ(found.size(), 6u * 32);
  EXPECT_EQ(embeddings(start, kit.train), found);
  for (const int micro_rows : {1, 40}) EXPECT_EQ(embeddings(kit, kit.train, micro_rows), found) << micro_rows;
  std::vector<ClientPair> flipped = kit.train;
  for (ClientPair& pair : flipped) pair.pair.flipped = true;
  EXPECT_LT(relative_error(embeddings(kit, flipped), found), 1e-6);

  // By hand for one pair: its rows through the decoder of a model without any module.
  AdapterOptions nothing;
  nothing.lora_rank = 0;
  const ParameterLayout layout(model.folder.config(), nothing, {});
  Decoder decoder(*model.backend, model.folder.config(), model.weights, layout);
  const MemberPairs member{0, std::span(&kit.train[2].pair, 1)};
  PackedBatch batch;
  pack(pairs, std::span(&member, 1), kit.policy.packing(), batch);
  const ConstView h = decoder.forward(
      {batch.tokens, batch.positions, {batch.segments, batch.segment_groups}, batch.clients}, {}, Pass::evaluate);
  std::vector<double> mean(32, 0.0);
  for (std::int64_t i = 0; i < h.rows; ++i)
    for (std::size_t j = 0; j < 32; ++j)
      mean[j] += static_cast<double>(h.f32()[static_cast<std::size_t>(i) * 32 + j]) / static_cast<double>(h.rows);
  EXPECT_LT(relative_error(std::vector<float>(found.begin() + 64, found.begin() + 96), mean), 1e-6);
}

}  // namespace
}  // namespace fedpdpo::test
