// config.json: both dialects of rotary settings, defaults, families, and the line for everything that is wrong.
#include <gtest/gtest.h>

#include <array>

#include "fedpdpo/model/config.hpp"
#include "model_kit.hpp"

namespace fedpdpo::test {
namespace {

ModelConfig edited(const std::string& model, const std::function<void(nlohmann::json&)>& edit) {
  ModelCopy copy(model);
  copy.edit_config(edit);
  return read_model_config(copy.folder.path());
}

TEST(Config, LlamaOfTransformers5) {
  const ModelConfig c = read_model_config(golden_folder("tiny_llama"));
  EXPECT_EQ(c.family, "llama");
  EXPECT_EQ(c.vocab_size, 96);
  EXPECT_EQ(c.hidden_size, 32);
  EXPECT_EQ(c.intermediate_size, 48);
  EXPECT_EQ(c.num_layers, 2);
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.rotary_dim, 8);
  EXPECT_EQ(c.max_positions, 128);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.rope_scaling.factor, 1);
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-5f);
  EXPECT_FALSE(c.tied_head);
  EXPECT_FALSE(c.attention_bias || c.output_bias || c.mlp_bias);
  EXPECT_EQ(c.sites.size(), 7u);
  EXPECT_EQ(c.block_shape(Block::qkv), (std::array<std::int64_t, 2>{64, 32}));
  EXPECT_EQ(c.block_shape(Block::output), (std::array<std::int64_t, 2>{32, 32}));
  EXPECT_EQ(c.block_shape(Block::up), (std::array<std::int64_t, 2>{96, 32}));
  EXPECT_EQ(c.block_shape(Block::down), (std::array<std::int64_t, 2>{32, 48}));
  EXPECT_EQ(c.layer_parameters(), 2 * (64 * 32 + 32 * 32 + 96 * 32 + 32 * 48));
}

TEST(Config, LlamaOfTransformers4) {
  const ModelConfig c = read_model_config(golden_folder("tiny_llama_tied"));
  EXPECT_EQ(c.head_dim, 12);
  EXPECT_EQ(c.num_kv_heads, 1);
  EXPECT_TRUE(c.tied_head && c.attention_bias && c.output_bias && c.mlp_bias);
  EXPECT_EQ(c.rope_scaling.factor, 4);
  EXPECT_EQ(c.rope_scaling.low_frequency_factor, 1);
  EXPECT_EQ(c.rope_scaling.high_frequency_factor, 4);
  EXPECT_EQ(c.rope_scaling.original_positions, 64);
}

TEST(Config, BothDialectsSayTheSame) {
  const ModelConfig four = edited("tiny_llama_tied", [](nlohmann::json& j) { j["rope_theta"] = 5000.0; });
  const ModelConfig five = edited("tiny_llama_tied", [](nlohmann::json& j) {
    nlohmann::json parameters = j["rope_scaling"];
    parameters["rope_theta"] = 5000.0;
    j.erase("rope_scaling");
    j.erase("rope_theta");
    j["rope_parameters"] = parameters;
  });
  const ModelConfig older = edited("tiny_llama_tied", [](nlohmann::json& j) {
    j["rope_theta"] = 5000;
    j["rope_scaling"]["type"] = "llama3";
    j["rope_scaling"].erase("rope_type");
  });
  for (const ModelConfig* c : {&four, &five, &older}) {
    EXPECT_EQ(c->rope_theta, 5000);
    EXPECT_EQ(c->rope_scaling.factor, 4);
    EXPECT_EQ(c->rope_scaling.original_positions, 64);
  }
  const ModelConfig none = edited("tiny_llama_tied", [](nlohmann::json& j) { j["rope_scaling"] = nullptr; });
  EXPECT_EQ(none.rope_scaling.factor, 1);
}

TEST(Config, Gpt2) {
  const ModelConfig c = read_model_config(golden_folder("tiny_gpt2"));
  EXPECT_EQ(c.family, "gpt2");
  EXPECT_EQ(c.norm, NormKind::layer);
  EXPECT_EQ(c.position, PositionKind::learned);
  EXPECT_EQ(c.intermediate_size, 128);
  EXPECT_EQ(c.activation, Activation::gelu_tanh);
  EXPECT_EQ(c.rotary_dim, 0);
  EXPECT_TRUE(c.tied_head);
  EXPECT_EQ(c.sites.size(), 4u);
  EXPECT_EQ(edited("tiny_gpt2", [](auto& j) { j["activation_function"] = "gelu"; }).activation, Activation::gelu_erf);
  EXPECT_EQ(edited("tiny_gpt2", [](auto& j) { j["n_inner"] = 40; }).intermediate_size, 40);
}

TEST(Config, DefaultsAreThoseOfTransformers) {
  const ModelConfig c = edited("tiny_llama", [](nlohmann::json& j) {
    for (const char* field : {"num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "hidden_act",
                              "attention_bias", "mlp_bias", "tie_word_embeddings", "max_position_embeddings"})
      j.erase(field);
  });
  EXPECT_EQ(c.num_kv_heads, 4);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_FLOAT_EQ(c.norm_eps, 1e-6f);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.max_positions, 2048);
  EXPECT_FALSE(c.tied_head);
}

TEST(Config, ModelTypeDoesWhereThereIsNoArchitecture) {
  EXPECT_EQ(edited("tiny_gpt2", [](auto& j) { j.erase("architectures"); }).family, "gpt2");
  EXPECT_EQ(edited("tiny_llama", [](auto& j) { j["architectures"] = nlohmann::json::array(); }).family, "llama");
}

struct BadConfig {
  std::string name, model, line;
  std::function<void(nlohmann::json&)> edit;
};

class BadConfigs : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, AreRefusedWithTheirLine) {
  ModelCopy copy(GetParam().model);
  copy.edit_config(GetParam().edit);
  EXPECT_INPUT_ERROR(read_model_config(copy.folder.path()), "config.json: " + GetParam().line);
  EXPECT_INPUT_ERROR(ModelFolder(copy.folder.path()), GetParam().line);
}

auto set(const char* field, nlohmann::json value) {
  return [field, value](nlohmann::json& j) { j[field] = value; };
}
auto erase(const char* field) {
  return [field](nlohmann::json& j) { j.erase(field); };
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadConfigs,
    testing::Values(
        BadConfig{"unknown_architecture", "tiny_llama",
                  "architectures: expected one of LlamaForCausalLM, MistralForCausalLM, "
                  "Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel, GPTNeoXForCausalLM, found BertForMaskedLM",
                  set("architectures", {"BertForMaskedLM"})},
        BadConfig{"unknown_model_type", "tiny_llama",
                  "architectures: expected one of LlamaForCausalLM, MistralForCausalLM, "
                  "Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel, GPTNeoXForCausalLM, found model_type bert",
                  [](nlohmann::json& j) {
                    j.erase("architectures");
                    j["model_type"] = "bert";
                  }},
        BadConfig{"neither", "tiny_llama",
                  "architectures: expected one of LlamaForCausalLM, MistralForCausalLM, "
                  "Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel, GPTNeoXForCausalLM, found none",
                  [](nlohmann::json& j) {
                    j.erase("architectures");
                    j.erase("model_type");
                  }},
        BadConfig{"missing_field", "tiny_llama", "hidden_size: expected an integer, found nothing",
                  erase("hidden_size")},
        BadConfig{"missing_field_gpt2", "tiny_gpt2", "n_layer: expected an integer, found nothing", erase("n_layer")},
        BadConfig{"text_for_number", "tiny_llama", "vocab_size: expected an integer, found \"96\"",
                  set("vocab_size", "96")},
        BadConfig{"fraction_for_integer", "tiny_llama", "num_hidden_layers: expected an integer, found 2.5",
                  set("num_hidden_layers", 2.5)},
        BadConfig{"number_for_bool", "tiny_llama", "mlp_bias: expected true or false, found 1", set("mlp_bias", 1)},
        BadConfig{"negative", "tiny_llama", "vocab_size: expected a whole number from 1 to 2^24, found -96",
                  set("vocab_size", -96)},
        BadConfig{"no_heads", "tiny_llama", "number of heads: expected a whole number from 1 to 2^20, found 0",
                  set("num_attention_heads", 0)},
        BadConfig{"no_heads_gpt2", "tiny_gpt2", "number of heads: expected a whole number from 1 to 2^20, found 0",
                  set("n_head", 0)},
        BadConfig{"too_large", "tiny_llama",
                  "intermediate size: expected a whole number from 1 to 2^20, found 1099511627776",
                  set("intermediate_size", std::int64_t{1} << 40)},
        BadConfig{"kv_heads", "tiny_llama",
                  "number of key-value heads: expected a divisor of the number of heads, found 3",
                  set("num_key_value_heads", 3)},
        BadConfig{"odd_rotary", "tiny_llama", "head_dim: expected an even number, found 7", set("head_dim", 7)},
        BadConfig{"heads_do_not_divide", "tiny_gpt2",
                  "hidden size: expected a multiple of the number of heads, found 32", set("n_head", 5)},
        BadConfig{"activation", "tiny_llama", "hidden_act: expected \"silu\", found relu", set("hidden_act", "relu")},
        BadConfig{"activation_gpt2", "tiny_gpt2", "activation_function: expected \"gelu_new\" or \"gelu\", found relu",
                  set("activation_function", "relu")},
        BadConfig{"rope", "tiny_llama_tied", "rope_scaling.rope_type: expected \"default\" or \"llama3\", found yarn",
                  [](nlohmann::json& j) { j["rope_scaling"]["rope_type"] = "yarn"; }},
        BadConfig{"rope_parameters", "tiny_llama",
                  "rope_parameters.rope_type: expected \"default\" or \"llama3\", found linear",
                  [](nlohmann::json& j) { j["rope_parameters"]["rope_type"] = "linear"; }},
        BadConfig{"rope_field", "tiny_llama_tied", "low_freq_factor: expected a number, found nothing",
                  [](nlohmann::json& j) { j["rope_scaling"].erase("low_freq_factor"); }},
        BadConfig{"scaled_by_layer", "tiny_gpt2", "scale_attn_by_inverse_layer_idx: expected false, found true",
                  set("scale_attn_by_inverse_layer_idx", true)},
        BadConfig{"unscaled", "tiny_gpt2", "scale_attn_weights: expected true, found false",
                  set("scale_attn_weights", false)},
        BadConfig{"not_an_object", "tiny_llama", "expected a JSON object, found array",
                  [](nlohmann::json& j) { j = nlohmann::json::array({1}); }}),
    [](const auto& i) { return i.param.name; });

TEST(Config, MissingOrBrokenFile) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(read_model_config(folder.path()), "config.json");
  write_text(folder / "config.json", "{\"model_type\": ");
  EXPECT_INPUT_ERROR(read_model_config(folder.path()), "config.json: expected valid JSON, found");
}

TEST(NamedShapes, AreThoseModels) {
  for (const std::string& name : named_shapes()) {
    const ModelConfig c = named_shape(name);
    EXPECT_EQ(c.family, name.starts_with("qwen") ? "qwen2" : name.starts_with("pythia") ? "gpt_neox" : "llama");
    EXPECT_EQ(c.num_heads * c.head_dim, c.hidden_size) << name;
  }
  const ModelConfig smol = named_shape("smollm2-135m");
  // 30 layers of 3 538 944 parameters and 49152 x 576 in the (tied) embedding: 134.5 million, but for the norms.
  EXPECT_EQ(smol.layer_parameters() + smol.vocab_size * smol.hidden_size, 134'479'872);
  // 24 layers of 14 909 440 and 151936 x 896: 493.96 million; 12 layers of 7 077 888.
  const ModelConfig qwen = named_shape("qwen2.5-0.5b");
  EXPECT_EQ(qwen.layer_parameters() + qwen.vocab_size * qwen.hidden_size, 493'961'216);
  EXPECT_TRUE(qwen.tied_head && qwen.attention_bias);
  EXPECT_EQ(named_shape("pythia-160m").layer_parameters(), 84'934'656);
  EXPECT_EQ(named_shape("pythia-160m").rotary_dim, 16);
  EXPECT_INPUT_ERROR(named_shape("smollm3"), "--shape: expected one of smollm2-135m, smollm2-360m");
}

}  // namespace
}  // namespace fedpdpo::test
