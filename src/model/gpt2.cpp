// GPT-2: LayerNorm with bias, learned positions, fused c_attn stored as (in, out) by Conv1D, GELU by tanh.
// Source: transformers' GPT2Config and modeling_gpt2.
#include <nlohmann/json.hpp>

#include "config_fields.hpp"
#include "family.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

void read_gpt2(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  c.vocab_size = json_required<std::int64_t>(json, "vocab_size", file);
  c.hidden_size = json_required<std::int64_t>(json, "n_embd", file);
  c.num_layers = json_required<std::int64_t>(json, "n_layer", file);
  c.num_heads = json_required<std::int64_t>(json, "n_head", file);
  c.num_kv_heads = c.num_heads;
  c.head_dim = c.num_heads > 0 ? c.hidden_size / c.num_heads : 0;
  c.intermediate_size = json_optional<std::int64_t>(json, "n_inner", file).value_or(4 * c.hidden_size);
  c.max_positions = json_optional<std::int64_t>(json, "n_positions", file).value_or(1024);
  c.norm = NormKind::layer;
  c.norm_eps = static_cast<float>(json_optional<double>(json, "layer_norm_epsilon", file).value_or(1e-5));
  c.position = PositionKind::learned;
  c.rotary_dim = 0;
  c.gated_mlp = false;
  c.activation = read_gelu(json, "activation_function", "gelu_new", file);
  if (json_optional<bool>(json, "scale_attn_by_inverse_layer_idx", file).value_or(false))
    throw InputError(file.string(), "scale_attn_by_inverse_layer_idx", "false", "true");
  if (!json_optional<bool>(json, "scale_attn_weights", file).value_or(true))
    throw InputError(file.string(), "scale_attn_weights", "true", "false");
  c.attention_bias = c.output_bias = c.mlp_bias = true;
  c.tied_head = json_optional<bool>(json, "tie_word_embeddings", file).value_or(true);
  c.layer_prefix = "transformer.h.";
}

std::vector<LinearSite> gpt2_sites(const ModelConfig& c) {
  const auto d = static_cast<std::int32_t>(c.hidden_size);
  const auto i = static_cast<std::int32_t>(c.intermediate_size);
  return {{Block::qkv, "attn.c_attn", 0, 3 * d},
          {Block::output, "attn.c_proj", 0, d},
          {Block::up, "mlp.c_fc", 0, i},
          {Block::down, "mlp.c_proj", 0, d}};
}

FamilyNames gpt2_names() {
  FamilyNames n;
  n.prefix = "transformer.";
  n.layers = "h.";
  n.embedding = "wte";
  n.position_embedding = "wpe";
  n.final_norm = "ln_f";
  n.head = "lm_head";
  n.attention_norm = "ln_1";
  n.mlp_norm = "ln_2";
  n.linear_storage = LinearStorage::in_out;
  return n;
}

}  // namespace

const Family gpt2_family{"gpt2", "GPT2LMHeadModel", read_gpt2, gpt2_sites, gpt2_names};

}  // namespace fedpdpo
