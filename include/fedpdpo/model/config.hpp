// ModelConfig: what the decoder must know of a HuggingFace config.json, in terms that every family shares. Families
// differ in values here and in a name map, nowhere else.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

enum class NormKind : std::uint8_t { rms, layer };
enum class PositionKind : std::uint8_t { rotary, learned };
enum class ResidualKind : std::uint8_t {
  sequential,  ///< m = x + attention(norm(x)), then m + mlp(norm(m))
  parallel,    ///< x + attention(norm(x)) + mlp(norm(x)), each with a norm of its own
};

/// The four linear maps of a layer. qkv and up are fused where a family keeps them apart.
enum class Block : std::uint8_t { qkv, output, up, down };
inline constexpr int num_blocks = 4;

/// How the output rows of a module lie in checkpoints (of the model and, as the rows of B, of PEFT).
enum class RowOrder : std::uint8_t {
  as_here,  ///< in the block's order
  by_head,  ///< [head][q, k, v][head_dim], where the block has [q, k, v][head][head_dim]
};

/// A module of the pretrained model inside a block: rows [begin, end) of the block's weight.
struct LinearSite {
  Block block = Block::qkv;
  std::string module;  ///< path below the layer as PEFT names it, e.g. "self_attn.q_proj"
  std::int32_t begin = 0, end = 0;
  RowOrder order = RowOrder::as_here;  ///< see ModelConfig::checkpoint_row
};

/// Llama 3's rotary rescaling (rope_scaling, rope_type "llama3"); factor 1 where there is none.
struct RopeScaling {
  double factor = 1, low_frequency_factor = 1, high_frequency_factor = 4;
  std::int64_t original_positions = 0;
};

struct ModelConfig {
  std::string family;  ///< config.json's model_type, e.g. "llama"
  std::int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_layers = 0;
  std::int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0, max_positions = 0;
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f;
  PositionKind position = PositionKind::rotary;
  std::int64_t rotary_dim = 0;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  std::int64_t attention_window = 0;  ///< latest tokens that a token attends to, itself included; 0: all
  bool head_norm = false;             ///< RMS norm of each head of q and k before the rotation
  ResidualKind residual = ResidualKind::sequential;
  bool gated_mlp = true;
  Activation activation = Activation::silu;
  bool attention_bias = false, output_bias = false, mlp_bias = false;
  bool tied_head = false;
  std::string layer_prefix;       ///< e.g. "model.layers."
  std::vector<LinearSite> sites;  ///< in the order q, k, v, o, gate, up, down (or the family's own)

  std::int64_t qkv_width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  std::int64_t query_key_width() const { return (num_heads + num_kv_heads) * head_dim; }
  /// Positions that have a rotary table: longer contexts are not for preference pairs.
  std::int64_t table_positions() const { return max_positions < (1 << 17) ? max_positions : (1 << 17); }
  /// True where full causal attention, which is what the decoder has, is the model's own on sequences of this length.
  bool attends_in_full(std::int64_t length) const { return attention_window == 0 || length <= attention_window; }
  std::int64_t up_width() const { return gated_mlp ? 2 * intermediate_size : intermediate_size; }
  /// (rows, cols) of a block's weight.
  std::array<std::int64_t, 2> block_shape(Block block) const;
  /// Row of the module's weight (and bias, and PEFT's lora_B) in checkpoints that is row site.begin + `row` of its
  /// block here, and row `row` of its LoRA's B in a ParameterLayout; 0 <= row < site.end - site.begin.
  std::int64_t checkpoint_row(const LinearSite& site, std::int64_t row) const;
  /// Parameters in the layers and in the embedding, as bench counts them.
  std::int64_t layer_parameters() const;
};

/// Reads FOLDER/config.json. InputError for an unknown architecture (naming the known ones), missing or inconsistent
/// fields, and settings this program does not implement (named).
ModelConfig read_model_config(const std::filesystem::path& folder);

/// Shapes with random weights for the bench: "smollm2-135m", "smollm2-360m", "llama-3.2-1b", "llama-7b",
/// "qwen2.5-0.5b", "pythia-160m".
ModelConfig named_shape(std::string_view name);
std::vector<std::string> named_shapes();

}  // namespace fedpdpo
