// Llama and its kin (SmolLM2, TinyLlama, stories260k): RMSNorm, rotary positions, grouped-query attention, SwiGLU.
// Source: transformers' LlamaConfig and modeling_llama.
#include "llama.hpp"

#include <nlohmann/json.hpp>

#include "config_fields.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {

void read_llama_layout(const nlohmann::json& json, const std::filesystem::path& file, const LlamaDefaults& defaults,
                       ModelConfig& c) {
  c.vocab_size = json_required<std::int64_t>(json, "vocab_size", file);
  c.hidden_size = json_required<std::int64_t>(json, "hidden_size", file);
  c.intermediate_size = json_required<std::int64_t>(json, "intermediate_size", file);
  c.num_layers = json_required<std::int64_t>(json, "num_hidden_layers", file);
  c.num_heads = json_required<std::int64_t>(json, "num_attention_heads", file);
  // transformers takes null for the general rule, whatever the family's default.
  const bool own_kv_heads = !json.contains("num_key_value_heads") && defaults.num_kv_heads > 0;
  c.num_kv_heads = own_kv_heads ? defaults.num_kv_heads
                                : json_optional<std::int64_t>(json, "num_key_value_heads", file).value_or(c.num_heads);
  const std::int64_t share = c.num_heads > 0 ? c.hidden_size / c.num_heads : 0;
  c.head_dim =
      json_optional<std::int64_t>(json, "head_dim", file).value_or(defaults.head_dim > 0 ? defaults.head_dim : share);
  c.max_positions = json_optional<std::int64_t>(json, "max_position_embeddings", file).value_or(defaults.max_positions);
  c.norm = NormKind::rms;
  c.norm_eps = static_cast<float>(json_optional<double>(json, "rms_norm_eps", file).value_or(1e-6));
  c.position = PositionKind::rotary;
  read_rope(json, file, {}, c);
  c.gated_mlp = true;
  std::string activation = json_optional<std::string>(json, "hidden_act", file).value_or("silu");
  if (activation != "silu") throw InputError(file.string(), "hidden_act", "\"silu\"", activation);
  c.activation = Activation::silu;
  c.tied_head = json_optional<bool>(json, "tie_word_embeddings", file).value_or(false);
  c.layer_prefix = "model.layers.";
}

std::vector<LinearSite> llama_sites(const ModelConfig& c) {
  const auto q = static_cast<std::int32_t>(c.num_heads * c.head_dim);
  const auto kv = static_cast<std::int32_t>(c.num_kv_heads * c.head_dim);
  const auto i = static_cast<std::int32_t>(c.intermediate_size);
  const auto d = static_cast<std::int32_t>(c.hidden_size);
  return {{Block::qkv, "self_attn.q_proj", 0, q},
          {Block::qkv, "self_attn.k_proj", q, q + kv},
          {Block::qkv, "self_attn.v_proj", q + kv, q + 2 * kv},
          {Block::output, "self_attn.o_proj", 0, d},
          {Block::up, "mlp.gate_proj", 0, i},
          {Block::up, "mlp.up_proj", i, 2 * i},
          {Block::down, "mlp.down_proj", 0, d}};
}

FamilyNames llama_names() {
  FamilyNames n;
  n.prefix = "model.";
  n.layers = "layers.";
  n.embedding = "embed_tokens";
  n.final_norm = "norm";
  n.head = "lm_head";
  n.attention_norm = "input_layernorm";
  n.mlp_norm = "post_attention_layernorm";
  n.query_norm = "self_attn.q_norm";
  n.key_norm = "self_attn.k_norm";
  return n;
}

namespace {

void read_llama(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  read_llama_layout(json, file, {}, c);
  c.attention_bias = c.output_bias = json_optional<bool>(json, "attention_bias", file).value_or(false);
  c.mlp_bias = json_optional<bool>(json, "mlp_bias", file).value_or(false);
}

}  // namespace

const Family llama_family{"llama", "LlamaForCausalLM", read_llama, llama_sites, llama_names};

}  // namespace fedpdpo
