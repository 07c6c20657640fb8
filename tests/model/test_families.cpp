// What Mistral, Qwen2, Qwen3 and GPT-NeoX have beside Llama and GPT-2: their config.json in both dialects,
// transformers' defaults, attention windows, the order of fused rows, and the line for what is not implemented.
#include <gtest/gtest.h>

#include <set>

#include "fedpdpo/model/layout.hpp"
#include "model_kit.hpp"

namespace fedpdpo::test {
namespace {

using Edit = std::function<void(nlohmann::json&)>;

ModelConfig edited(const std::string& model, const Edit& edit) {
  ModelCopy copy(model);
  copy.edit_config(edit);
  return read_model_config(copy.folder.path());
}

Edit set(const char* field, nlohmann::json value) {
  return [field, value](nlohmann::json& j) { j[field] = value; };
}

TEST(Mistral, HasLlamasLayoutAndAWindow) {
  const ModelConfig c = read_model_config(golden_folder("tiny_mistral"));
  EXPECT_EQ(c.family, "mistral");
  EXPECT_EQ(c.head_dim, 12);
  EXPECT_EQ(c.rotary_dim, 12);
  EXPECT_EQ(c.num_heads * c.head_dim, 48);
  EXPECT_FALSE(c.attention_bias || c.output_bias || c.mlp_bias || c.head_norm);
  EXPECT_EQ(c.sites.size(), 7u);
  EXPECT_EQ(c.attention_window, 64);
  EXPECT_TRUE(c.attends_in_full(64));
  EXPECT_FALSE(c.attends_in_full(65));
  EXPECT_EQ(edited("tiny_mistral", set("head_dim", nullptr)).head_dim, 8);
}

TEST(Mistral, WithoutAWindowSeesEverything) {
  const ModelConfig c = edited("tiny_mistral", set("sliding_window", nullptr));
  EXPECT_EQ(c.attention_window, 0);
  EXPECT_TRUE(c.attends_in_full(1 << 20));
}

TEST(Mistral, DefaultsAreThoseOfTransformers) {
  const ModelConfig c = edited("tiny_mistral", [](nlohmann::json& j) {
    for (const char* field : {"sliding_window", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"})
      j.erase(field);
    j["num_attention_heads"] = 16;
  });
  EXPECT_EQ(c.attention_window, 4096);
  EXPECT_EQ(c.num_kv_heads, 8);
  EXPECT_EQ(c.max_positions, 131072);
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-6f);
  EXPECT_EQ(edited("tiny_mistral", set("num_key_value_heads", nullptr)).num_kv_heads, 4);
}

TEST(Qwen2, HasBiasesInQueriesKeysAndValues) {
  const ModelConfig c = read_model_config(golden_folder("tiny_qwen2"));
  EXPECT_EQ(c.family, "qwen2");
  EXPECT_TRUE(c.attention_bias && c.tied_head);
  EXPECT_FALSE(c.output_bias || c.mlp_bias || c.head_norm);
  EXPECT_EQ(c.rope_theta, 5000);
  EXPECT_EQ(edited("tiny_qwen3", set("rope_scaling", nlohmann::json::object())).rope_theta, 5000);
  EXPECT_EQ(c.attention_window, 0) << "use_sliding_window is false";
  EXPECT_EQ(edited("tiny_qwen2",
                   [](nlohmann::json& j) {
                     j["max_window_layers"] = 0;
                     j["layer_types"] = nullptr;
                   })
                .attention_window,
            0);
}

TEST(Qwen2, DefaultsAreThoseOfTransformers) {
  const ModelConfig c = edited("tiny_qwen2", [](nlohmann::json& j) {
    for (const char* field : {"num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rope_theta",
                              "use_sliding_window", "sliding_window", "max_window_layers"})
      j.erase(field);
    j["num_attention_heads"] = 32;
    j["head_dim"] = 2;
  });
  EXPECT_EQ(c.num_kv_heads, 32);
  EXPECT_EQ(c.max_positions, 32768);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_FALSE(c.tied_head);
  EXPECT_EQ(c.attention_window, 0);
}

/// The window of the layers that have one; transformers gives it to layers from max_window_layers on.
TEST(Qwen2, WindowOfSomeLayersCountsForAll) {
  const auto window = [](const Edit& edit) {
    return edited("tiny_qwen2",
                  [&](nlohmann::json& j) {
                    j["use_sliding_window"] = true;
                    edit(j);
                  })
        .attention_window;
  };
  EXPECT_EQ(window([](auto&) {}), 0) << "max_window_layers is 28, the model has two layers";
  EXPECT_EQ(window(set("max_window_layers", 2)), 0);
  EXPECT_EQ(window(set("max_window_layers", 1)), 8);
  EXPECT_EQ(window(set("layer_types", {"full_attention", "sliding_attention"})), 8);
  EXPECT_EQ(window(set("layer_types", {"full_attention", "full_attention"})), 0);
  EXPECT_EQ(window([](nlohmann::json& j) {
              j["max_window_layers"] = 0;
              j["sliding_window"] = nullptr;
            }),
            0);
  EXPECT_EQ(window([](nlohmann::json& j) {
              j["max_window_layers"] = 0;
              j.erase("sliding_window");
            }),
            4096);
}

TEST(Qwen3, NormsHeads) {
  const ModelConfig c = read_model_config(golden_folder("tiny_qwen3"));
  EXPECT_EQ(c.family, "qwen3");
  EXPECT_TRUE(c.head_norm);
  EXPECT_EQ(c.head_dim, 12);
  EXPECT_FALSE(c.attention_bias || c.output_bias || c.mlp_bias || c.tied_head);
  EXPECT_EQ(c.query_key_width(), (4 + 2) * 12);
  EXPECT_EQ(edited("tiny_qwen3", [](auto& j) { j.erase("head_dim"); }).head_dim, 128);
  const ModelConfig biased = edited("tiny_qwen3", set("attention_bias", true));
  EXPECT_TRUE(biased.attention_bias && biased.output_bias);
}

TEST(Qwen3, EveryHeadHasItsPartsWeights) {
  const LoadedModel model(golden_folder("tiny_qwen3"));
  const SafetensorsFile file(golden_folder("tiny_qwen3") / "model.safetensors");
  const std::span<const float> q = file.read<float>("model.layers.1.self_attn.q_norm.weight");
  const std::span<const float> k = file.read<float>("model.layers.1.self_attn.k_norm.weight");
  const ConstView found = model.weights.layers[1].head_norm;
  ASSERT_EQ(found.cols, 6 * 12);
  for (std::size_t i = 0; i < 72; ++i) EXPECT_EQ(found.f32()[i], i < 48 ? q[i % 12] : k[i % 12]) << i;
}

TEST(GptNeox, OfTransformers4) {
  const ModelConfig c = read_model_config(golden_folder("tiny_gpt_neox"));
  EXPECT_EQ(c.family, "gpt_neox");
  EXPECT_EQ(c.norm, NormKind::layer);
  EXPECT_EQ(c.position, PositionKind::rotary);
  EXPECT_EQ(c.residual, ResidualKind::parallel);
  EXPECT_EQ(c.activation, Activation::gelu_erf);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rotary_dim, 4);
  EXPECT_EQ(c.rope_theta, 5000);
  EXPECT_TRUE(c.attention_bias && c.output_bias && c.mlp_bias);
  EXPECT_FALSE(c.gated_mlp || c.tied_head);
}

TEST(GptNeox, OfTransformers5) {
  const ModelConfig c = read_model_config(golden_folder("tiny_gpt_neox_sequential"));
  EXPECT_EQ(c.residual, ResidualKind::sequential);
  EXPECT_EQ(c.activation, Activation::gelu_tanh);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.rotary_dim, 4);
  EXPECT_EQ(c.rope_theta, 5000);
  EXPECT_TRUE(c.mlp_bias && c.tied_head);
  EXPECT_FALSE(c.attention_bias || c.output_bias);
}

TEST(GptNeox, DefaultsAreThoseOfTransformers) {
  const ModelConfig c = edited("tiny_gpt_neox", [](nlohmann::json& j) {
    for (const char* field : {"rotary_pct", "rotary_emb_base", "hidden_act", "use_parallel_residual", "attention_bias",
                              "layer_norm_eps", "max_position_embeddings", "tie_word_embeddings"})
      j.erase(field);
  });
  EXPECT_EQ(c.rotary_dim, 4);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.activation, Activation::gelu_erf);
  EXPECT_EQ(c.residual, ResidualKind::parallel);
  EXPECT_TRUE(c.attention_bias);
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-5f);
  EXPECT_EQ(c.max_positions, 2048);
  EXPECT_FALSE(c.tied_head);
}

/// [head][q, k, v][head_dim] in checkpoints, [q, k, v][head][head_dim] here.
TEST(GptNeox, RowsOfTheFusedModuleAreTakenHeadByHead) {
  const LoadedModel model(golden_folder("tiny_gpt_neox"));
  const ModelConfig& c = model.folder.config();
  const SafetensorsFile file(golden_folder("tiny_gpt_neox") / "model.safetensors");
  const std::string name = "gpt_neox.layers.1.attention.query_key_value.";
  const std::span<const float> weight = file.read<float>(name + "weight"), bias = file.read<float>(name + "bias");
  const LayerWeights& layer = model.weights.layers[1];
  const LinearSite& site = c.sites.front();
  std::set<std::int64_t> rows;
  for (std::int64_t part = 0; part < 3; ++part)
    for (std::int64_t head = 0; head < 2; ++head)
      for (std::int64_t i = 0; i < 16; ++i) {
        const std::int64_t here = part * 32 + head * 16 + i, there = head * 48 + part * 16 + i;
        EXPECT_EQ(c.checkpoint_row(site, here), there);
        rows.insert(there);
        EXPECT_EQ(layer.bias[0].f32()[here], bias[static_cast<std::size_t>(there)]);
        for (std::int64_t k = 0; k < 32; ++k)
          ASSERT_EQ(layer.weight[0].f32()[here * 32 + k], weight[static_cast<std::size_t>(there * 32 + k)]);
      }
  EXPECT_EQ(rows.size(), 96u);
  for (std::int64_t row : {0, 31}) EXPECT_EQ(c.checkpoint_row(c.sites[1], row), row);
  EXPECT_CONTRACT_VIOLATION(c.checkpoint_row(site, 96), "checkpoint_row");
}

/// Pythia's files hold the causal mask and the rotary frequencies as buffers.
TEST(GptNeox, BuffersOfOldCheckpointsAreLeftAlone) {
  ModelCopy copy("tiny_gpt_neox");
  copy.edit_tensors([](TensorMap& all) {
    all["gpt_neox.layers.0.attention.bias"] = {StoredType::u8, {1, 1, 8, 8}, std::vector<std::byte>(64)};
    all["gpt_neox.layers.0.attention.masked_bias"] = {StoredType::f32, {}, std::vector<std::byte>(4)};
    all["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = {StoredType::f32, {2}, std::vector<std::byte>(8)};
  });
  EXPECT_EQ(loaded_bytes(copy.folder.path()), loaded_bytes(golden_folder("tiny_gpt_neox")));
}

struct Targets {
  std::string model, targets;
  std::vector<std::string> modules;  // with LoRA in layer 1, in the layout's order
};

class FamilyTargets : public testing::TestWithParam<Targets> {};

TEST_P(FamilyTargets, AreNamedAsInPeft) {
  const ModelConfig c = read_model_config(golden_folder(GetParam().model));
  AdapterOptions o;
  o.lora_rank = 2;
  o.lora_targets = GetParam().targets;
  const ParameterLayout layout(c, o, {});
  std::vector<std::string> found;
  for (const Parameter& p : layout.parameters()) {
    const std::string prefix = c.layer_prefix + "1.", suffix = ".lora_B.weight";
    if (!p.name.starts_with(prefix) || !p.name.ends_with(suffix)) continue;
    found.push_back(p.name.substr(prefix.size(), p.name.size() - prefix.size() - suffix.size()));
    EXPECT_EQ(c.sites.at(static_cast<std::size_t>(p.site)).module, found.back());
  }
  EXPECT_EQ(found, GetParam().modules);
}

const std::vector<std::string> llama_modules{"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                             "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                             "mlp.down_proj"};

INSTANTIATE_TEST_SUITE_P(Families, FamilyTargets,
                         testing::Values(Targets{"tiny_mistral", "all-linear", llama_modules},
                                         Targets{
                                             "tiny_qwen2", "q_proj,v_proj", {"self_attn.q_proj", "self_attn.v_proj"}},
                                         Targets{"tiny_qwen3", "all-linear", llama_modules},
                                         Targets{"tiny_gpt_neox", "query_key_value", {"attention.query_key_value"}},
                                         Targets{"tiny_gpt_neox", "dense", {"attention.dense"}},
                                         Targets{"tiny_gpt_neox",
                                                 "all-linear",
                                                 {"attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h",
                                                  "mlp.dense_4h_to_h"}}),
                         [](const auto& i) { return i.param.model + "_" + std::to_string(i.index); });

struct BadFamilyConfig {
  std::string name, model, line;
  Edit edit;
};

class BadFamilyConfigs : public testing::TestWithParam<BadFamilyConfig> {};

TEST_P(BadFamilyConfigs, AreRefusedWithTheirLine) {
  ModelCopy copy(GetParam().model);
  copy.edit_config(GetParam().edit);
  EXPECT_INPUT_ERROR(read_model_config(copy.folder.path()), "config.json: " + GetParam().line);
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadFamilyConfigs,
    testing::Values(
        BadFamilyConfig{"window_of_nothing", "tiny_mistral",
                        "sliding_window: expected a positive number or null, found 0", set("sliding_window", 0)},
        BadFamilyConfig{"window_in_words", "tiny_mistral", "sliding_window: expected an integer, found \"64\"",
                        set("sliding_window", "64")},
        BadFamilyConfig{"dynamic_rope", "tiny_qwen2",
                        "rope_scaling.rope_type: expected \"default\" or \"llama3\", found dynamic",
                        set("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}})},
        BadFamilyConfig{"yarn", "tiny_qwen3",
                        "rope_parameters.rope_type: expected \"default\" or \"llama3\", found yarn",
                        [](nlohmann::json& j) { j["rope_parameters"]["rope_type"] = "yarn"; }},
        BadFamilyConfig{"rope_by_layer_type", "tiny_qwen3",
                        "rope_parameters.full_attention: expected one set of rotary settings for all layers, found an "
                        "object",
                        set("rope_parameters", {{"full_attention", {{"rope_type", "default"}, {"rope_theta", 1e6}}}})},
        BadFamilyConfig{"partly_rotary_llama_layout", "tiny_qwen3",
                        "rope_parameters.partial_rotary_factor: expected 1, found 0.5",
                        [](nlohmann::json& j) { j["rope_parameters"]["partial_rotary_factor"] = 0.5; }},
        BadFamilyConfig{"partly_rotary_older", "tiny_qwen2", "partial_rotary_factor: expected 1, found 0.5",
                        set("partial_rotary_factor", 0.5)},
        BadFamilyConfig{"theta", "tiny_qwen2", "rope_theta: expected a positive number, found 0", set("rope_theta", 0)},
        BadFamilyConfig{"layer_types", "tiny_qwen3",
                        "layer_types: expected a list of \"full_attention\" and \"sliding_attention\", found "
                        "\"linear_attention\"",
                        [](nlohmann::json& j) {
                          j["use_sliding_window"] = true;
                          j["layer_types"] = {"full_attention", "linear_attention"};
                        }},
        BadFamilyConfig{"window_layers_without_a_window", "tiny_qwen3",
                        "layer_types: expected a list of \"full_attention\", as use_sliding_window is not true, found "
                        "\"sliding_attention\"",
                        set("layer_types", {"full_attention", "sliding_attention"})},
        BadFamilyConfig{"activation_qwen", "tiny_qwen2", "hidden_act: expected \"silu\", found gelu",
                        set("hidden_act", "gelu")},
        BadFamilyConfig{"too_large_neox", "tiny_gpt_neox",
                        "hidden size: expected a whole number from 1 to 2^20, found 2000000000",
                        set("hidden_size", 2000000000)},
        BadFamilyConfig{"activation_neox", "tiny_gpt_neox", "hidden_act: expected \"gelu_new\" or \"gelu\", found relu",
                        set("hidden_act", "relu")},
        BadFamilyConfig{"rotary_pct", "tiny_gpt_neox", "rotary_pct: expected a number from 0 to 1, found 1.5",
                        set("rotary_pct", 1.5)},
        BadFamilyConfig{"odd_rotary_part", "tiny_gpt_neox", "rotary part of head_dim: expected an even number, found 3",
                        set("rotary_pct", 0.2)},
        BadFamilyConfig{"heads_do_not_divide", "tiny_gpt_neox",
                        "hidden size: expected a multiple of the number of heads, found 32",
                        set("num_attention_heads", 5)},
        BadFamilyConfig{"no_heads", "tiny_gpt_neox", "number of heads: expected a whole number from 1 to 2^20, found 0",
                        set("num_attention_heads", 0)}),
    [](const auto& i) { return i.param.name; });

/// What a family needs and a checkpoint lacks is named.
TEST(Families, MissingTensorsAreNamed) {
  const std::pair<const char*, const char*> lacking[] = {
      {"tiny_qwen2", "model.layers.0.self_attn.k_proj.bias"},
      {"tiny_qwen3", "model.layers.1.self_attn.q_norm.weight"},
      {"tiny_gpt_neox", "gpt_neox.layers.0.post_attention_layernorm.bias"},
      {"tiny_gpt_neox", "embed_out.weight"}};
  for (const auto& [model, tensor] : lacking) {
    ModelCopy copy(model);
    copy.edit_tensors([&](TensorMap& all) { ASSERT_EQ(all.erase(tensor), 1u); });
    EXPECT_INPUT_ERROR(loaded_bytes(copy.folder.path()),
                       std::string(tensor) + ": expected a tensor of that name, found none");
  }
}

}  // namespace
}  // namespace fedpdpo::test
