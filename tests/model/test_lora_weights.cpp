// The personal LoRA in layout and decoder, and weights of LoRA's outputs by row: each against a plain LoRA whose values
// say the same.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "model_kit.hpp"
#include "support/golden.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;

constexpr Group kinds[] = {Group::lora_a, Group::lora_b, Group::personal_a, Group::personal_b};

AdapterOptions adapter(int rank, double alpha, PersonalLora personal = PersonalLora::none) {
  AdapterOptions options;
  options.lora_rank = rank;
  options.lora_alpha = alpha;
  options.personal_lora = personal;
  return options;
}

Values random_values(std::size_t n, std::uint64_t seed) {
  RandomStream random({.seed = seed, .purpose = Purpose::test});
  Values values(n);
  for (float& x : values) x = static_cast<float>(0.1 * random.normal());
  return values;
}

TEST(PersonalLayout, IsASecondLoraBehindWhatIsShared) {
  const ModelConfig config = read_model_config(golden_folder("tiny_llama"));
  const Group shared[] = {Group::lora_a, Group::lora_b};
  const ParameterLayout layout(config, adapter(4, 8, PersonalLora::ditto), shared),
      plain(config, adapter(4, 8), shared);
  EXPECT_EQ(layout.shared_size(), plain.shared_size());
  EXPECT_EQ(layout.size(), 2 * plain.size());
  EXPECT_EQ(layout.shared_blocks(), plain.shared_blocks());
  EXPECT_FALSE(plain.has(Group::personal_a));
  EXPECT_EQ(plain.sites(0, Block::qkv)[0].personal_a, -1);
  for (const auto& [common, own] : {std::pair{Group::lora_a, Group::personal_a}, {Group::lora_b, Group::personal_b}}) {
    EXPECT_TRUE(layout.has(own));
    EXPECT_FALSE(layout.is_shared(own));
    EXPECT_EQ(layout.range(own).size(), layout.range(common).size());
    EXPECT_EQ(layout.range(own).begin, layout.range(common).begin + layout.shared_size());
  }
  std::set<std::string> names;
  for (const Parameter& p : layout.parameters()) EXPECT_TRUE(names.insert(p.name).second) << p.name;
  EXPECT_TRUE(names.contains("model.layers.1.mlp.down_proj.lora_B.personal.weight"));
  EXPECT_TRUE(names.contains("model.layers.1.mlp.down_proj.lora_B.weight"));
  std::vector<float> values(layout.size());
  for (int layer = 0; layer < 2; ++layer)
    for (int b = 0; b < num_blocks; ++b)
      for (const LoraSite& site : layout.sites(layer, static_cast<Block>(b))) {
        const auto& all = layout.parameters();
        const auto at = [&](int index) { return all[static_cast<std::size_t>(index)]; };
        EXPECT_EQ(at(site.a_of(Adapter::personal)).group, Group::personal_a);
        EXPECT_EQ(at(site.b_of(Adapter::personal)).group, Group::personal_b);
        EXPECT_EQ(at(site.personal_a).offset, at(site.a).offset + layout.shared_size());
        EXPECT_EQ(at(site.personal_b).rows, site.end - site.begin);
        EXPECT_EQ(layout.stacked_a(layer, static_cast<Block>(b), Adapter::personal, values.data(), 0).data,
                  layout.stacked_a(layer, static_cast<Block>(b), Adapter::shared, values.data(), 0).data +
                      layout.shared_size());
      }
}

/// Both start alike, for every client; a restart draws the shared one alone, and round 0 is the run's start.
TEST(PersonalLayout, StartAndRestart) {
  const LoadedModel model(golden_folder("tiny_llama"));
  const Group shared[] = {Group::lora_b, Group::lora_a};
  const ParameterLayout layout(model.folder.config(), adapter(4, 8, PersonalLora::apfl), shared);
  const auto part = [&](const Values& values, Group group) {
    const ParameterRange range = layout.range(group);
    return Values(values.begin() + static_cast<std::ptrdiff_t>(range.begin),
                  values.begin() + static_cast<std::ptrdiff_t>(range.end));
  };
  Values start(layout.size(), std::nanf("")), other = start;
  layout.initialize(5, 0, model.weights.head, start);
  layout.initialize(5, 3, model.weights.head, other);
  EXPECT_EQ(start, other);
  EXPECT_EQ(part(start, Group::personal_a), part(start, Group::lora_a));
  EXPECT_EQ(part(start, Group::personal_b), Values(layout.range(Group::lora_b).size(), 0));

  Values moved(layout.size(), 7);
  layout.restart_lora(5, 0, moved);
  EXPECT_EQ(part(moved, Group::lora_a), part(start, Group::lora_a));
  EXPECT_EQ(part(moved, Group::lora_b), part(start, Group::lora_b));
  EXPECT_EQ(part(moved, Group::personal_a), Values(layout.range(Group::lora_a).size(), 7));
  Values span(layout.shared_size(), 7);
  layout.restart_lora(5, 2, span);
  EXPECT_NE(part(span, Group::lora_a), part(start, Group::lora_a));
  EXPECT_EQ(part(span, Group::lora_b), part(start, Group::lora_b));
}

TEST(PersonalLayout, TruncationIsOfTheSharedLora) {
  const ModelConfig config = read_model_config(golden_folder("tiny_llama"));
  const ParameterLayout layout(config, adapter(4, 8, PersonalLora::ditto), {});
  Values values(layout.size(), 1);
  layout.truncate_rank(3, values);
  for (const Parameter& p : layout.parameters())
    for (std::int64_t i = 0; i < p.rows; ++i)
      for (std::int64_t j = 0; j < p.cols; ++j) {
        const bool cut = (p.group == Group::lora_a && i == 3) || (p.group == Group::lora_b && j == 3);
        ASSERT_EQ(values[p.offset + static_cast<std::size_t>(i * p.cols + j)], cut ? 0 : 1) << p.name;
      }
}

/// Two sequences of one member.
struct Batch {
  static constexpr std::int32_t lengths[] = {6, 4}, num_rows = 10;
  Batch() {
    for (std::int32_t length : lengths) {
      const auto begin = static_cast<std::int32_t>(positions.size());
      for (std::int32_t i = 0; i < length; ++i) positions.push_back(i);
      segments.push_back({begin, begin + length, begin, begin});
      groups.push_back(static_cast<std::int32_t>(segments.size()));
    }
  }
  BatchView view(LoraWeights weights = {}) const { return {tokens, positions, {segments, groups}, members, weights}; }

  std::vector<std::int32_t> tokens{3, 14, 15, 92, 65, 35, 8, 9, 79, 32}, positions, groups{0};
  std::vector<Segment> segments;
  std::vector<MemberRows> members{{0, num_rows, 0}};
};

/// By row: the same for all rows of a sequence.
Values by_row(float first, float second) {
  Values weights(6, first);
  weights.insert(weights.end(), 4, second);
  return weights;
}

ConstView row_view(const Values& weights) { return {weights.data(), 1, Batch::num_rows, Batch::num_rows, DType::f32}; }

double relative_error(const Values& found, const Values& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

class LoraWeighting : public testing::TestWithParam<std::string> {
 protected:
  LoraWeighting() : model(golden_folder(GetParam())) {}

  struct Model {
    Model(LoadedModel& m, const AdapterOptions& options)
        : layout(m.folder.config(), options, {}), decoder(*m.backend, m.folder.config(), m.weights, layout) {}
    ParameterLayout layout;
    Decoder decoder;
  };

  Values hidden(Model& m, const Values& values, LoraWeights weights = {}, Adapter which = Adapter::shared) {
    const ConstView h = m.decoder.forward(batch.view(weights), {values.data(), 0, which}, Pass::evaluate);
    return {h.f32(), h.f32() + h.size()};
  }
  /// The gradient of <d_h, h> for a d_h that is zero outside of the rows [begin, end).
  Values gradient(Model& m, const Values& values, std::size_t begin, std::size_t end, LoraWeights weights = {},
                  Adapter which = Adapter::shared) {
    const CohortParameters parameters{values.data(), 0, which};
    m.decoder.forward(batch.view(weights), parameters, Pass::train);
    Values d_h = random_values(10 * 32, 9), result(m.layout.size(), 0);
    std::fill(d_h.begin(), d_h.begin() + static_cast<std::ptrdiff_t>(32 * begin), 0.0f);
    std::fill(d_h.begin() + static_cast<std::ptrdiff_t>(32 * end), d_h.end(), 0.0f);
    CohortGradients gradients{result.data(), 0, Write::overwrite, {}};
    gradients.wanted[static_cast<std::size_t>(group_a(which))] = true;
    gradients.wanted[static_cast<std::size_t>(group_b(which))] = true;
    m.decoder.backward(batch.view(weights), parameters, gradients, view_of(d_h.data(), 10, 32));
    return result;
  }
  /// Values with B times a factor.
  static Values scaled_b(const ParameterLayout& layout, Values values, float factor, Group group = Group::lora_b) {
    for (std::size_t i = layout.range(group).begin; i < layout.range(group).end; ++i) values[i] *= factor;
    return values;
  }

  LoadedModel model;
  Batch batch;
};

/// The personal LoRA's pass is that of a plain LoRA with its values, to the bit, forward and backward; the shared one
/// does not count.
TEST_P(LoraWeighting, APassRunsWithTheAdapterItIsAskedFor) {
  Model both(model, adapter(4, 8, PersonalLora::ditto)), plain(model, adapter(4, 8));
  const std::size_t n = plain.layout.size();
  const Values one = random_values(n, 1), two = random_values(n, 2);
  Values values = one;
  values.insert(values.end(), two.begin(), two.end());
  ASSERT_EQ(values.size(), both.layout.size());
  EXPECT_EQ(hidden(both, values, {}, Adapter::shared), hidden(plain, one));
  EXPECT_EQ(hidden(both, values, {}, Adapter::personal), hidden(plain, two));
  const Values shared = gradient(both, values, 0, 10, {}, Adapter::shared);
  const Values personal = gradient(both, values, 0, 10, {}, Adapter::personal);
  const Values nothing(n, 0);
  const auto half = static_cast<std::ptrdiff_t>(n);
  EXPECT_EQ(Values(shared.begin(), shared.begin() + half), gradient(plain, one, 0, 10));
  EXPECT_EQ(Values(shared.begin() + half, shared.end()), nothing) << "the other adapter's gradient was written";
  EXPECT_EQ(Values(personal.begin(), personal.begin() + half), nothing);
  EXPECT_EQ(Values(personal.begin() + half, personal.end()), gradient(plain, two, 0, 10));
}

/// A row's weight w is B times w. Sequences with weights of their own give what each gives alone with its B; the
/// gradient by B is w times that by the scaled B, and the gradient by A is the same.
TEST_P(LoraWeighting, AWeightIsAFactorOfB) {
  Model plain(model, adapter(4, 8));
  const Values values = random_values(plain.layout.size(), 1);
  const float w[] = {2, 0.25};
  const Values weights = by_row(w[0], w[1]);
  const LoraWeights view{row_view(weights), {}};
  const Values found = hidden(plain, values, view);
  Values found_gradient = gradient(plain, values, 0, 10, view), expected_gradient(values.size(), 0);
  std::size_t begin = 0;
  for (std::size_t s = 0; s < 2; ++s) {
    const std::size_t end = begin + static_cast<std::size_t>(Batch::lengths[s]);
    const Values scaled = scaled_b(plain.layout, values, w[s]);
    const Values expected = hidden(plain, scaled);
    const auto rows = [&](const Values& all) {
      return Values(all.begin() + static_cast<std::ptrdiff_t>(32 * begin),
                    all.begin() + static_cast<std::ptrdiff_t>(32 * end));
    };
    // Powers of two: the factor changes no rounding.
    EXPECT_EQ(rows(found), rows(expected)) << s;
    const Values own = scaled_b(plain.layout, gradient(plain, scaled, begin, end), w[s]);
    for (std::size_t i = 0; i < own.size(); ++i) expected_gradient[i] += own[i];
    begin = end;
  }
  EXPECT_LT(relative_error(found_gradient, expected_gradient), 1e-6);
  EXPECT_GT(relative_error(gradient(plain, values, 0, 10), expected_gradient), 0.1) << "weights change next to nothing";
  const Values ones = by_row(1, 1);
  EXPECT_EQ(hidden(plain, values, {row_view(ones), {}}), hidden(plain, values));
}

/// w_s B_s A_s + w_p B_p A_p is a LoRA of twice the rank: A stacked, B side by side, each times its weight; alpha
/// doubled, so that alpha / r stays.
TEST_P(LoraWeighting, TwoLorasAreOneOfTwiceTheRank) {
  Model both(model, adapter(4, 8, PersonalLora::feddpa)), wide(model, adapter(8, 16));
  const Values values = random_values(both.layout.size(), 1);
  const float w_shared = 0.75f, w_personal = 0.25f;
  Values stacked(wide.layout.size());
  for (const Parameter& p : wide.layout.parameters()) {
    std::string name = p.name;
    name.insert(name.rfind("weight"), "personal.");
    const float* own =
        values.data() + both.layout.parameters()[static_cast<std::size_t>(both.layout.find(name))].offset;
    const float* common =
        values.data() + both.layout.parameters()[static_cast<std::size_t>(both.layout.find(p.name))].offset;
    float* out = stacked.data() + p.offset;
    if (p.group == Group::lora_a) {
      std::copy_n(common, 4 * p.cols, out);
      std::copy_n(own, 4 * p.cols, out + 4 * p.cols);
      continue;
    }
    for (std::int64_t i = 0; i < p.rows; ++i)
      for (std::int64_t j = 0; j < 4; ++j) {
        out[8 * i + j] = w_shared * common[4 * i + j];
        out[8 * i + 4 + j] = w_personal * own[4 * i + j];
      }
  }
  const Values shared = by_row(w_shared, 1), personal = by_row(w_personal, 0);
  const Values found = hidden(both, values, {row_view(shared), row_view(personal)}), expected = hidden(wide, stacked);
  const auto split = [](const Values& all, bool second) {
    return second ? Values(all.begin() + 6 * 32, all.end()) : Values(all.begin(), all.begin() + 6 * 32);
  };
  EXPECT_LT(relative_error(split(found, false), split(expected, false)), 1e-5);
  // The second sequence has the shared LoRA alone.
  EXPECT_LT(relative_error(split(found, true), split(hidden(both, values), true)), 1e-6);
  EXPECT_GT(relative_error(split(expected, false), split(hidden(both, values), false)), 1e-2);
  // None of either is the bare backbone.
  const Values zeros(values.size(), 0), none = by_row(0, 0);
  EXPECT_EQ(hidden(both, values, {row_view(none), row_view(none)}), hidden(both, zeros));
  EXPECT_CONTRACT_VIOLATION(gradient(both, values, 0, 10, {row_view(shared), row_view(personal)}), "for evaluation");
}

INSTANTIATE_TEST_SUITE_P(Models, LoraWeighting, testing::ValuesIn(golden_models),
                         [](const auto& i) { return i.param; });

TEST(GroupName, EveryGroupHasItsOwn) {
  std::set<std::string_view> names;
  for (int g = 0; g < num_groups; ++g) EXPECT_TRUE(names.insert(group_name(static_cast<Group>(g))).second) << g;
  EXPECT_FALSE(names.contains("?"));
  EXPECT_EQ(group_a(Adapter::shared), kinds[0]);
  EXPECT_EQ(group_b(Adapter::shared), kinds[1]);
  EXPECT_EQ(group_a(Adapter::personal), kinds[2]);
  EXPECT_EQ(group_b(Adapter::personal), kinds[3]);
}

}  // namespace
}  // namespace fedpdpo::test
