// ParameterLayout: what lies where, what is shared, which sites carry LoRA, and where everybody starts.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "fedpdpo/model/layout.hpp"
#include "model_kit.hpp"

namespace fedpdpo::test {
namespace {

constexpr std::array<Group, 5> every_group{Group::lora_a, Group::lora_b, Group::bottleneck, Group::head, Group::reward};

AdapterOptions everything() {
  AdapterOptions o;
  o.lora_rank = 4;
  o.head = HeadKind::lowrank;
  o.head_rank = 3;
  o.bottleneck = 6;
  o.bottleneck_kind = BottleneckKind::gated;
  o.reward_head = true;
  return o;
}

ModelConfig llama() { return read_model_config(golden_folder("tiny_llama")); }

/// What must hold of any layout.
void expect_sound(const ParameterLayout& layout, std::size_t num_shared) {
  std::size_t offset = 0;
  std::set<std::string> names;
  for (const Parameter& p : layout.parameters()) {
    EXPECT_EQ(p.offset, offset) << p.name;
    EXPECT_GT(p.size(), 0u) << p.name;
    EXPECT_TRUE(names.insert(p.name).second) << p.name << " comes twice";
    const ParameterRange range = layout.range(p.group);
    EXPECT_GE(p.offset, range.begin) << p.name;
    EXPECT_LE(p.offset + p.size(), range.end) << p.name;
    EXPECT_EQ(layout.is_shared(p.group), p.offset + p.size() <= layout.shared_size()) << p.name;
    offset += p.size();
  }
  EXPECT_EQ(layout.size(), offset);
  std::size_t in_groups = 0;
  for (Group group : every_group) in_groups += layout.range(group).size();
  EXPECT_EQ(in_groups, layout.size());
  const std::vector<std::size_t> blocks = layout.shared_blocks();
  EXPECT_EQ(blocks.front(), 0u);
  EXPECT_EQ(blocks.back(), layout.shared_size());
  EXPECT_TRUE(std::is_sorted(blocks.begin(), blocks.end()));
  EXPECT_EQ(blocks.size(), num_shared + 1);
}

TEST(Layout, SharedGroupsComeFirstInEveryOrder) {
  const ModelConfig config = llama();
  std::array<Group, 5> order = every_group;
  std::sort(order.begin(), order.end());
  int tried = 0;
  do {
    for (std::size_t n = 0; n <= order.size(); ++n, ++tried) {
      const std::span<const Group> shared = std::span(order).first(n);
      const ParameterLayout layout(config, everything(), shared);
      std::size_t expected = 0, num_shared = 0;
      for (Group group : shared) {  // in the order given
        EXPECT_EQ(layout.range(group).begin, expected);
        EXPECT_TRUE(layout.has(group));
        expected = layout.range(group).end;
      }
      EXPECT_EQ(layout.shared_size(), expected);
      for (const Parameter& p : layout.parameters()) num_shared += layout.is_shared(p.group) ? 1 : 0;
      expect_sound(layout, num_shared);
    }
  } while (std::next_permutation(order.begin(), order.end()));
  EXPECT_EQ(tried, 120 * 6);
}

TEST(Layout, GroupsThatTheOptionsLeaveOutAreSkipped) {
  AdapterOptions o;
  o.lora_rank = 0;
  const ParameterLayout nothing(llama(), o, every_group);
  EXPECT_EQ(nothing.size(), 0u);
  EXPECT_EQ(nothing.shared_size(), 0u);
  EXPECT_EQ(nothing.lowest_lora_layer(), 2);
  EXPECT_EQ(nothing.lora_scale(), 0.0f);
  EXPECT_TRUE(nothing.sites(0, Block::qkv).empty());
  o.reward_head = true;
  const ParameterLayout reward(llama(), o, every_group);
  EXPECT_EQ(reward.size(), 33u);
  EXPECT_EQ(reward.shared_size(), 33u);
  EXPECT_FALSE(reward.has(Group::lora_a));
}

TEST(Layout, AGroupIsSharedOnce) {
  const Group twice[] = {Group::lora_a, Group::lora_a};
  EXPECT_CONTRACT_VIOLATION(ParameterLayout(llama(), everything(), twice), "a group is shared twice");
}

TEST(Layout, ShapesAndNames) {
  const ParameterLayout layout(llama(), everything(), {});
  const auto shape = [&](const char* name) {
    const int index = layout.find(name);
    EXPECT_GE(index, 0) << name;
    const Parameter& p = layout.parameters()[static_cast<std::size_t>(std::max(index, 0))];
    return std::pair(p.rows, p.cols);
  };
  using Shape = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(shape("model.layers.0.self_attn.q_proj.lora_A.weight"), Shape(4, 32));
  EXPECT_EQ(shape("model.layers.1.self_attn.k_proj.lora_B.weight"), Shape(16, 4));
  EXPECT_EQ(shape("model.layers.1.mlp.down_proj.lora_A.weight"), Shape(4, 48));
  EXPECT_EQ(shape("bottleneck.down"), Shape(6, 32));
  EXPECT_EQ(shape("bottleneck.bias"), Shape(1, 6));
  EXPECT_EQ(shape("bottleneck.up"), Shape(32, 6));
  EXPECT_EQ(shape("bottleneck.gate"), Shape(1, 32));
  EXPECT_EQ(shape("head.q"), Shape(96, 3));
  EXPECT_EQ(shape("head.p"), Shape(3, 32));
  EXPECT_EQ(shape("reward.weight"), Shape(1, 32));
  EXPECT_EQ(shape("reward.bias"), Shape(1, 1));
  EXPECT_EQ(layout.find("head.weight"), -1);
  EXPECT_EQ(layout.lora_scale(), 4.0f);
  const ParameterLayout gpt2(read_model_config(golden_folder("tiny_gpt2")), everything(), {});
  EXPECT_GE(gpt2.find("transformer.h.1.mlp.c_proj.lora_B.weight"), 0);
}

/// The A matrices of a block's sites follow one another without a gap, in the order of their columns in A x.
TEST(Layout, StackedAIsContiguous) {
  const Group orders[][2] = {{Group::lora_a, Group::lora_b}, {Group::lora_b, Group::lora_a}};
  for (const auto& shared : orders) {
    const ParameterLayout layout(llama(), everything(), shared);
    std::vector<float> values(2 * layout.size());
    for (int layer = 0; layer < 2; ++layer) {
      for (int b = 0; b < num_blocks; ++b) {
        const auto block = static_cast<Block>(b);
        const std::span<const LoraSite> sites = layout.sites(layer, block);
        ASSERT_EQ(sites.size(), (std::array{3u, 1u, 2u, 1u})[static_cast<std::size_t>(b)]);
        const auto stride = static_cast<std::int64_t>(layout.size());
        const ClientMatrix a = layout.stacked_a(layer, block, Adapter::shared, values.data(), stride);
        EXPECT_EQ(a.rows, 4 * static_cast<std::int64_t>(sites.size()));
        EXPECT_EQ(a.slot_stride, stride);
        for (std::size_t i = 0; i < sites.size(); ++i) {
          const auto own = layout.matrix(sites[i].a, values.data(), stride);
          EXPECT_EQ(own.data, a.data + static_cast<std::int64_t>(i) * 4 * a.cols);
          EXPECT_EQ(sites[i].u_begin, static_cast<std::int32_t>(4 * i));
          EXPECT_EQ(own.cols, a.cols);
          const Parameter& lora_b = layout.parameters()[static_cast<std::size_t>(sites[i].b)];
          EXPECT_EQ(lora_b.group, Group::lora_b);
          EXPECT_EQ(lora_b.rows, sites[i].end - sites[i].begin);
        }
      }
    }
  }
}

TEST(Layout, TargetsChooseSites) {
  AdapterOptions o;
  o.lora_targets = "q_proj,v_proj";
  const ParameterLayout two(llama(), o, {});
  ASSERT_EQ(two.sites(0, Block::qkv).size(), 2u);
  EXPECT_EQ(two.sites(0, Block::qkv)[1].begin, 48);
  EXPECT_EQ(two.sites(0, Block::qkv)[1].end, 64);
  EXPECT_EQ(two.sites(0, Block::qkv)[1].u_begin, 8);
  EXPECT_TRUE(two.sites(0, Block::down).empty());
  EXPECT_EQ(two.parameters().size(), 2u * 2 * 2);
  o.lora_targets = "self_attn.v_proj,self_attn.q_proj,q_proj";  // full names, any order, repeated
  const ParameterLayout same(llama(), o, {});
  ASSERT_EQ(same.parameters().size(), two.parameters().size());
  for (std::size_t i = 0; i < same.parameters().size(); ++i)
    EXPECT_EQ(same.parameters()[i].name, two.parameters()[i].name);
  o.lora_targets = "c_proj";  // GPT-2 has two of that name
  const ParameterLayout gpt2(read_model_config(golden_folder("tiny_gpt2")), o, {});
  EXPECT_EQ(gpt2.sites(1, Block::output).size(), 1u);
  EXPECT_EQ(gpt2.sites(1, Block::down).size(), 1u);
  EXPECT_TRUE(gpt2.sites(1, Block::up).empty());
  o.lora_targets = "q_proj,c_attn";
  EXPECT_INPUT_ERROR(ParameterLayout(llama(), o, {}),
                     "--lora-targets: expected names of all-linear, q_proj, k_proj, v_proj, o_proj, gate_proj, "
                     "up_proj, down_proj, found c_attn");
  o.lora_targets = ",";
  EXPECT_INPUT_ERROR(ParameterLayout(llama(), o, {}), "found none");
}

TEST(Layout, FirstLayer) {
  AdapterOptions o;
  o.lora_first_layer = 1;
  const ParameterLayout upper(llama(), o, {});
  EXPECT_EQ(upper.lowest_lora_layer(), 1);
  EXPECT_TRUE(upper.sites(0, Block::qkv).empty());
  EXPECT_EQ(upper.sites(1, Block::qkv).size(), 3u);
  for (const Parameter& p : upper.parameters()) EXPECT_EQ(p.name.rfind("model.layers.1.", 0), 0u) << p.name;
  for (int bad : {-1, 2}) {
    o.lora_first_layer = bad;
    EXPECT_INPUT_ERROR(ParameterLayout(llama(), o, {}),
                       "--lora-first-layer: expected 0 to 1, found " + std::to_string(bad));
  }
}

std::vector<float> initial(const ParameterLayout& layout, std::uint64_t seed, int client, ConstView head) {
  std::vector<float> values(layout.size(), std::nanf(""));
  layout.initialize(seed, client, head, values);
  return values;
}

std::vector<float> part(const ParameterLayout& layout, std::span<const float> values, const std::string& name) {
  const Parameter& p = layout.parameters()[static_cast<std::size_t>(layout.find(name))];
  const std::span<const float> own = values.subspan(p.offset, p.size());
  return {own.begin(), own.end()};
}

TEST(Initialize, LoraIsTheSameForAllClientsAndOtherModules) {
  const LoadedModel model(golden_folder("tiny_llama"));
  const ModelConfig& config = model.folder.config();
  const Group shared[] = {Group::lora_b, Group::lora_a};
  AdapterOptions alone;
  alone.lora_rank = 4;
  AdapterOptions full = everything();
  full.head = HeadKind::full;
  const ParameterLayout plain(config, alone, {}), every(config, full, shared);
  const auto first = initial(plain, 5, 0, model.weights.head), other_client = initial(every, 5, 3, model.weights.head);
  const auto other_seed = initial(plain, 6, 0, model.weights.head);
  std::set<std::vector<float>> seen;
  for (const Parameter& p : plain.parameters()) {
    if (p.group != Group::lora_a) continue;
    const std::vector<float> a = part(plain, first, p.name);
    EXPECT_EQ(a, part(every, other_client, p.name)) << p.name;
    EXPECT_NE(a, part(plain, other_seed, p.name)) << p.name;
    EXPECT_TRUE(seen.insert(a).second) << p.name << " starts as another matrix does";
  }
}

TEST(Initialize, PrivateModulesDependOnTheClient) {
  const LoadedModel model(golden_folder("tiny_llama"));
  const ParameterLayout layout(model.folder.config(), everything(), {});
  const auto zero = initial(layout, 5, 0, model.weights.head), again = initial(layout, 5, 0, model.weights.head);
  const auto one = initial(layout, 5, 1, model.weights.head), seed = initial(layout, 6, 0, model.weights.head);
  EXPECT_EQ(zero, again);
  for (const char* name : {"bottleneck.down", "head.p"}) {
    EXPECT_NE(part(layout, zero, name), part(layout, one, name)) << name;
    EXPECT_NE(part(layout, zero, name), part(layout, seed, name)) << name;
  }
}

TEST(Initialize, ZerosAndBounds) {
  const LoadedModel model(golden_folder("tiny_llama"));
  const ParameterLayout layout(model.folder.config(), everything(), {});
  const auto values = initial(layout, 5, 2, model.weights.head);
  int drawn = 0;
  for (const Parameter& p : layout.parameters()) {
    const std::vector<float> own = part(layout, values, p.name);
    const bool random = p.group == Group::lora_a || p.name == "bottleneck.down" || p.name == "head.p";
    const double bound = random ? 1 / std::sqrt(static_cast<double>(p.cols)) : 0;
    double largest = 0, sum = 0, squares = 0;
    for (float x : own) {
      largest = std::max(largest, std::abs(static_cast<double>(x)));
      sum += static_cast<double>(x);
      squares += static_cast<double>(x) * static_cast<double>(x);
    }
    EXPECT_LE(largest, bound * (1 + 1e-6)) << p.name;
    if (!random) continue;
    ++drawn;
    // At least 96 numbers uniform in (-bound, bound): the largest within 10 % of the bound but for a chance of .9^96 =
    // 4e-5, the mean within 4 standard deviations, the variance bound^2 / 3.
    const auto n = static_cast<double>(own.size());
    EXPECT_GT(largest, 0.9 * bound) << p.name;
    EXPECT_LT(std::abs(sum / n), 4 * bound / std::sqrt(3 * n)) << p.name;
    EXPECT_NEAR(squares / n, bound * bound / 3, 0.3 * bound * bound / 3) << p.name;
  }
  EXPECT_EQ(drawn, 2 * 7 + 2);
}

/// The full head starts as the pretrained one, also where the backbone is kept in bf16 (which fp32 holds exactly).
TEST(Initialize, HeadIsThePretrainedOne) {
  AdapterOptions o;
  o.lora_rank = 0;
  o.head = HeadKind::full;
  for (const char* name : {"tiny_llama", "tiny_gpt2"}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const LoadedModel model(golden_folder(name), dtype);
      const ParameterLayout layout(model.folder.config(), o, {});
      const std::vector<float> head = initial(layout, 1, 0, model.weights.head);
      ASSERT_EQ(head.size(), 96u * 32);
      std::vector<float> expected(head.size());
      model.backend->copy(model.weights.head, view_of(expected.data(), 96, 32));
      EXPECT_EQ(head, expected) << name << " " << dtype_name(dtype);
    }
  }
}

TEST(Initialize, ChecksSizes) {
  const LoadedModel model(golden_folder("tiny_llama"));
  AdapterOptions o;
  o.head = HeadKind::full;
  const ParameterLayout layout(model.folder.config(), o, {});
  std::vector<float> values(layout.size() - 1);
  EXPECT_CONTRACT_VIOLATION(layout.initialize(1, 0, model.weights.head, values), "another size");
  values.resize(layout.size());
  EXPECT_CONTRACT_VIOLATION(layout.initialize(1, 0, model.weights.final_norm, values), "the head's shape differs");
}

}  // namespace
}  // namespace fedpdpo::test
