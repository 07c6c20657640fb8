// Llama and its kin (SmolLM2, TinyLlama, stories260k): RMSNorm, rotary positions, grouped-query attention, SwiGLU.
// Source: transformers' LlamaConfig and modeling_llama.
#include <nlohmann/json.hpp>

#include "family.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

void read_rope(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& config) {
  // transformers 5 keeps theta and scaling in rope_parameters, earlier ones in rope_theta and rope_scaling.
  config.rope_theta = json_optional<double>(json, "rope_theta", file).value_or(10000.0);
  nlohmann::json scaling;
  for (const char* field : {"rope_parameters", "rope_scaling"})
    if (json.contains(field) && json[field].is_object()) scaling = json[field];
  if (scaling.is_null()) return;
  config.rope_theta = json_optional<double>(scaling, "rope_theta", file).value_or(config.rope_theta);
  std::string type = json_optional<std::string>(scaling, "rope_type", file)
                         .value_or(json_optional<std::string>(scaling, "type", file).value_or("default"));
  if (type == "default") return;
  if (type != "llama3") throw InputError(file.string(), "rope_scaling.rope_type", "\"default\" or \"llama3\"", type);
  config.rope_scaling.factor = json_required<double>(scaling, "factor", file);
  config.rope_scaling.low_frequency_factor = json_required<double>(scaling, "low_freq_factor", file);
  config.rope_scaling.high_frequency_factor = json_required<double>(scaling, "high_freq_factor", file);
  config.rope_scaling.original_positions =
      json_required<std::int64_t>(scaling, "original_max_position_embeddings", file);
}

void read_llama(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  c.vocab_size = json_required<std::int64_t>(json, "vocab_size", file);
  c.hidden_size = json_required<std::int64_t>(json, "hidden_size", file);
  c.intermediate_size = json_required<std::int64_t>(json, "intermediate_size", file);
  c.num_layers = json_required<std::int64_t>(json, "num_hidden_layers", file);
  c.num_heads = json_required<std::int64_t>(json, "num_attention_heads", file);
  c.num_kv_heads = json_optional<std::int64_t>(json, "num_key_value_heads", file).value_or(c.num_heads);
  c.head_dim =
      json_optional<std::int64_t>(json, "head_dim", file).value_or(c.num_heads > 0 ? c.hidden_size / c.num_heads : 0);
  c.max_positions = json_optional<std::int64_t>(json, "max_position_embeddings", file).value_or(2048);
  c.norm = NormKind::rms;
  c.norm_eps = static_cast<float>(json_optional<double>(json, "rms_norm_eps", file).value_or(1e-6));
  c.position = PositionKind::rotary;
  c.rotary_dim = c.head_dim;
  read_rope(json, file, c);
  c.gated_mlp = true;
  std::string activation = json_optional<std::string>(json, "hidden_act", file).value_or("silu");
  if (activation != "silu") throw InputError(file.string(), "hidden_act", "\"silu\"", activation);
  c.activation = Activation::silu;
  bool attention_bias = json_optional<bool>(json, "attention_bias", file).value_or(false);
  c.attention_bias = c.output_bias = attention_bias;
  c.mlp_bias = json_optional<bool>(json, "mlp_bias", file).value_or(false);
  c.tied_head = json_optional<bool>(json, "tie_word_embeddings", file).value_or(false);
  c.layer_prefix = "model.layers.";
  const auto q = static_cast<std::int32_t>(c.num_heads * c.head_dim);
  const auto kv = static_cast<std::int32_t>(c.num_kv_heads * c.head_dim);
  const auto i = static_cast<std::int32_t>(c.intermediate_size);
  const auto d = static_cast<std::int32_t>(c.hidden_size);
  c.sites = {{Block::qkv, "self_attn.q_proj", 0, q},
             {Block::qkv, "self_attn.k_proj", q, q + kv},
             {Block::qkv, "self_attn.v_proj", q + kv, q + 2 * kv},
             {Block::output, "self_attn.o_proj", 0, d},
             {Block::up, "mlp.gate_proj", 0, i},
             {Block::up, "mlp.up_proj", i, 2 * i},
             {Block::down, "mlp.down_proj", 0, d}};
}

FamilyNames llama_names(const ModelConfig& c) {
  FamilyNames n;
  n.prefix = "model.";
  n.layers = "layers.";
  n.embedding = "embed_tokens";
  n.final_norm = "norm";
  n.head = "lm_head";
  n.attention_norm = "input_layernorm";
  n.mlp_norm = "post_attention_layernorm";
  for (const LinearSite& site : c.sites)
    n.blocks[static_cast<std::size_t>(site.block)].push_back({site.module, site.end - site.begin, false});
  return n;
}

}  // namespace

const Family llama_family{"llama", "LlamaForCausalLM", read_llama, llama_names};

}  // namespace fedpdpo
