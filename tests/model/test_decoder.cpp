// Decoder on its own: gradients of the upper layers where the lower ones carry no LoRA, and buffers that are used
// again. (Its numbers are compared with transformers' in tests/train.)
#include <gtest/gtest.h>

#include <cmath>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "model_kit.hpp"
#include "support/golden.hpp"

namespace fedpdpo::test {
namespace {

/// Sequences of the given lengths, packed; they belong to one member at slot 0.
struct Batch {
  Batch(const std::vector<std::int32_t>& lengths, std::uint64_t seed) {
    RandomStream random({.seed = seed, .purpose = Purpose::test});
    for (std::int32_t length : lengths) {
      const auto begin = static_cast<std::int32_t>(tokens.size());
      for (std::int32_t i = 0; i < length; ++i) {
        tokens.push_back(static_cast<std::int32_t>(random.below(96)));
        positions.push_back(i);
      }
      segments.push_back({begin, begin + length, begin, begin});
      groups.push_back(static_cast<std::int32_t>(segments.size()));
    }
    members.push_back({0, static_cast<std::int32_t>(tokens.size()), 0});
  }
  BatchView view() const { return {tokens, positions, {segments, groups}, members}; }
  std::int64_t rows() const { return static_cast<std::int64_t>(tokens.size()); }

  std::vector<std::int32_t> tokens, positions, groups{0};
  std::vector<Segment> segments;
  std::vector<MemberRows> members;
};

std::vector<float> random_values(std::size_t n, double size, std::uint64_t seed) {
  RandomStream random({.seed = seed, .purpose = Purpose::test});
  std::vector<float> values(n);
  for (float& x : values) x = static_cast<float>(size * random.normal());
  return values;
}

struct Result {
  std::vector<float> hidden, gradient;
};

/// Forward and backward with a random d_h; the gradient of groups that are not wanted stays NaN.
Result train(Decoder& decoder, const ParameterLayout& layout, const Batch& batch, const std::vector<float>& values,
             std::array<bool, num_groups> wanted = {true, true}) {
  const ConstView h = decoder.forward(batch.view(), {values.data(), 0}, Pass::train);
  Result result;
  result.hidden.assign(h.f32(), h.f32() + h.size());
  std::vector<float> d_h = random_values(static_cast<std::size_t>(h.size()), 1, 77);
  result.gradient.assign(layout.size(), std::nanf(""));
  decoder.backward(batch.view(), {values.data(), 0}, {result.gradient.data(), 0, Write::overwrite, wanted},
                   view_of(d_h.data(), h.rows, h.cols));
  return result;
}

std::vector<float> evaluate(Decoder& decoder, const Batch& batch, const std::vector<float>& values) {
  const ConstView h = decoder.forward(batch.view(), {values.data(), 0}, Pass::evaluate);
  return {h.f32(), h.f32() + h.size()};
}

class Decoders : public testing::TestWithParam<std::string> {
 protected:
  Decoders() : model(golden_folder(GetParam())) {}
  ParameterLayout layout(int first_layer = 0, const std::string& targets = "all-linear") const {
    AdapterOptions o;
    o.lora_rank = 4;
    o.lora_first_layer = first_layer;
    o.lora_targets = targets;
    return {model.folder.config(), o, {}};
  }
  Decoder decoder(const ParameterLayout& l) { return {*model.backend, model.folder.config(), model.weights, l}; }
  LoadedModel model;
};

/// LoRA on the upper layer alone against LoRA on all with B = 0 below: the same function, and the same gradient at the
/// sites that both have. Shorter backward pass, other buffers.
TEST_P(Decoders, FirstLayersGradientsAreThoseOfTheFullBackwardPass) {
  const ParameterLayout full = layout(), upper = layout(1);
  ASSERT_LT(upper.size(), full.size());
  std::vector<float> full_values = random_values(full.size(), 0.1, 1), upper_values(upper.size());
  for (const Parameter& p : full.parameters()) {
    const int index = upper.find(p.name);
    const auto begin = full_values.begin() + static_cast<std::ptrdiff_t>(p.offset);
    if (index >= 0) {
      const Parameter& q = upper.parameters()[static_cast<std::size_t>(index)];
      std::copy_n(begin, p.size(), upper_values.begin() + static_cast<std::ptrdiff_t>(q.offset));
    } else if (p.group == Group::lora_b) {
      std::fill_n(begin, p.size(), 0.0f);
    }
  }
  const Batch batch({5, 9, 1}, 3);
  Decoder full_decoder = decoder(full), upper_decoder = decoder(upper);
  const Result a = train(full_decoder, full, batch, full_values), b = train(upper_decoder, upper, batch, upper_values);
  EXPECT_EQ(a.hidden, b.hidden);
  for (const Parameter& q : upper.parameters()) {
    const Parameter& p = full.parameters()[static_cast<std::size_t>(full.find(q.name))];
    double norm = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      EXPECT_EQ(a.gradient[p.offset + i], b.gradient[q.offset + i]) << q.name;
      norm += std::abs(static_cast<double>(a.gradient[p.offset + i]));
    }
    EXPECT_GT(norm, 0) << q.name;
  }
}

/// A pass leaves nothing behind that the next one sees: after larger and smaller batches, of either kind, every batch
/// gives the bits that a fresh decoder gives.
TEST_P(Decoders, BuffersAreReusedWithoutATrace) {
  for (const int first_layer : {0, 1}) {
    const ParameterLayout l = layout(first_layer);
    const std::vector<float> values = random_values(l.size(), 0.1, 1);
    const Batch small({3}, 5), middle({7, 4}, 6), large({30, 2, 11}, 7);
    Decoder used = decoder(l);
    const auto expect_fresh = [&](const Batch& batch, Pass pass) {
      Decoder fresh = decoder(l);
      if (pass == Pass::evaluate) {
        EXPECT_EQ(evaluate(used, batch, values), evaluate(fresh, batch, values)) << batch.rows();
        return;
      }
      const Result found = train(used, l, batch, values), expected = train(fresh, l, batch, values);
      EXPECT_EQ(found.hidden, expected.hidden) << batch.rows();
      EXPECT_EQ(found.gradient, expected.gradient) << batch.rows();
    };
    expect_fresh(small, Pass::evaluate);
    expect_fresh(middle, Pass::train);
    expect_fresh(large, Pass::evaluate);
    expect_fresh(small, Pass::evaluate);
    expect_fresh(small, Pass::train);
    expect_fresh(large, Pass::train);
    expect_fresh(middle, Pass::evaluate);
    expect_fresh(middle, Pass::train);
    Decoder evaluator = decoder(l), trainer = decoder(l);
    EXPECT_EQ(evaluate(evaluator, large, values), train(trainer, l, large, values).hidden) << "the passes differ";
  }
}

TEST_P(Decoders, WriteOnlyWhatIsWanted) {
  const ParameterLayout l = layout();
  const std::vector<float> values = random_values(l.size(), 0.1, 1);
  const Batch batch({6, 3}, 5);
  Decoder d = decoder(l);
  const Result both = train(d, l, batch, values);
  for (float x : both.gradient) ASSERT_TRUE(std::isfinite(x));
  for (const Group group : {Group::lora_a, Group::lora_b}) {
    std::array<bool, num_groups> wanted{};
    wanted[static_cast<std::size_t>(group)] = true;
    const Result one = train(d, l, batch, values, wanted);
    const ParameterRange range = l.range(group);
    for (std::size_t i = 0; i < l.size(); ++i) {
      if (i >= range.begin && i < range.end) {
        ASSERT_EQ(one.gradient[i], both.gradient[i]);
      } else {
        ASSERT_TRUE(std::isnan(one.gradient[i])) << "a group that is not wanted was written";
      }
    }
  }
}

TEST_P(Decoders, AccumulateAddsToWhatIsThere) {
  const ParameterLayout l = layout();
  const std::vector<float> values = random_values(l.size(), 0.1, 1);
  const Batch batch({6, 3}, 5);
  Decoder d = decoder(l);
  std::vector<float> twice = train(d, l, batch, values).gradient;
  const std::vector<float> once = twice;
  std::vector<float> d_h = random_values(static_cast<std::size_t>(batch.rows()) * 32, 1, 77);
  d.forward(batch.view(), {values.data(), 0}, Pass::train);
  d.backward(batch.view(), {values.data(), 0}, {twice.data(), 0, Write::accumulate, {true, true}},
             view_of(d_h.data(), batch.rows(), 32));
  for (std::size_t i = 0; i < once.size(); ++i) ASSERT_NEAR(twice[i], 2 * once[i], 1e-5 * (1 + std::abs(once[i])));
}

/// A sequence's numbers do not depend on what is packed beside it.
TEST_P(Decoders, SequencesDoNotSeeOneAnother) {
  const ParameterLayout l = layout();
  const std::vector<float> values = random_values(l.size(), 0.1, 1);
  const Batch alone({7}, 5), packed({7, 12, 2}, 5);  // the same seed: the same first sequence
  Decoder d = decoder(l);
  const std::vector<float> one = evaluate(d, alone, values), all = evaluate(d, packed, values);
  EXPECT_EQ(one, std::vector<float>(all.begin(), all.begin() + 7 * 32));
}

TEST_P(Decoders, BufferBytesGrowWithWhatIsKept) {
  const ParameterLayout l = layout(), upper = layout(1);
  const Decoder full = decoder(l), half = decoder(upper);
  EXPECT_GT(full.buffer_bytes(100, Pass::train), full.buffer_bytes(100, Pass::evaluate));
  EXPECT_GT(full.buffer_bytes(100, Pass::train), half.buffer_bytes(100, Pass::train));
  EXPECT_EQ(full.buffer_bytes(200, Pass::train), 2 * full.buffer_bytes(100, Pass::train));
}

/// What a plan counts on is what a pass takes, but for tokens and positions.
TEST_P(Decoders, BufferBytesAreThoseThatAreAllocated) {
  const Batch batch({6, 3}, 5);
  const std::size_t indices = 2 * sizeof(std::int32_t) * static_cast<std::size_t>(batch.rows());
  for (const int first_layer : {0, 1}) {
    const ParameterLayout l = layout(first_layer);
    const std::vector<float> values = random_values(l.size(), 0.1, 1);
    for (const Pass pass : {Pass::evaluate, Pass::train}) {
      Decoder d = decoder(l);
      const std::size_t before = model.backend->allocated().now;
      d.forward(batch.view(), {values.data(), 0}, pass);
      EXPECT_EQ(model.backend->allocated().now - before, d.buffer_bytes(batch.rows(), pass) + indices);
    }
  }
}

TEST_P(Decoders, RefuseABatchWithoutRows) {
  const ParameterLayout l = layout();
  Decoder d = decoder(l);
  EXPECT_CONTRACT_VIOLATION(evaluate(d, Batch({}, 1), {}), "a batch without rows");
}

INSTANTIATE_TEST_SUITE_P(Models, Decoders, testing::ValuesIn(golden_models), [](const auto& i) { return i.param; });

}  // namespace
}  // namespace fedpdpo::test
