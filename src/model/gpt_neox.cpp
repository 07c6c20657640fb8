// GPT-NeoX (Pythia): LayerNorm with bias, partly rotary positions, GELU, attention and MLP side by side
// (use_parallel_residual), and q, k and v in one module whose rows are kept head by head.
// Source: transformers' GPTNeoXConfig and modeling_gpt_neox.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "config_fields.hpp"
#include "family.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

void read_gpt_neox(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  c.vocab_size = json_required<std::int64_t>(json, "vocab_size", file);
  c.hidden_size = json_required<std::int64_t>(json, "hidden_size", file);
  c.intermediate_size = json_required<std::int64_t>(json, "intermediate_size", file);
  c.num_layers = json_required<std::int64_t>(json, "num_hidden_layers", file);
  c.num_heads = c.num_kv_heads = json_required<std::int64_t>(json, "num_attention_heads", file);
  if (c.num_heads > 0 && c.hidden_size % c.num_heads != 0)
    throw InputError(file.string(), "hidden size", "a multiple of the number of heads",
                     fmt::format("{}", c.hidden_size));
  c.head_dim = c.num_heads > 0 ? c.hidden_size / c.num_heads : 0;
  c.max_positions = json_optional<std::int64_t>(json, "max_position_embeddings", file).value_or(2048);
  c.norm = NormKind::layer;
  c.norm_eps = static_cast<float>(json_optional<double>(json, "layer_norm_eps", file).value_or(1e-5));
  c.position = PositionKind::rotary;
  read_rope(json, file, {"rotary_emb_base", "rotary_pct", 0.25}, c);
  c.gated_mlp = false;
  c.activation = read_gelu(json, "hidden_act", "gelu", file);
  const bool parallel = json_optional<bool>(json, "use_parallel_residual", file).value_or(true);
  c.residual = parallel ? ResidualKind::parallel : ResidualKind::sequential;
  c.attention_bias = c.output_bias = json_optional<bool>(json, "attention_bias", file).value_or(true);
  c.mlp_bias = true;
  c.tied_head = json_optional<bool>(json, "tie_word_embeddings", file).value_or(false);
  c.layer_prefix = "gpt_neox.layers.";
}

std::vector<LinearSite> gpt_neox_sites(const ModelConfig& c) {
  const auto d = static_cast<std::int32_t>(c.hidden_size);
  const auto i = static_cast<std::int32_t>(c.intermediate_size);
  return {{Block::qkv, "attention.query_key_value", 0, 3 * d, RowOrder::by_head},
          {Block::output, "attention.dense", 0, d},
          {Block::up, "mlp.dense_h_to_4h", 0, i},
          {Block::down, "mlp.dense_4h_to_h", 0, d}};
}

FamilyNames gpt_neox_names() {
  FamilyNames n;
  n.prefix = "gpt_neox.";
  n.layers = "layers.";
  n.embedding = "embed_in";
  n.final_norm = "final_layer_norm";
  n.head = "embed_out";
  n.attention_norm = "input_layernorm";
  n.mlp_norm = "post_attention_layernorm";
  return n;
}

}  // namespace

const Family gpt_neox_family{"gpt_neox", "GPTNeoXForCausalLM", read_gpt_neox, gpt_neox_sites, gpt_neox_names};

}  // namespace fedpdpo
