// Qwen2 (and 2.5): Llama's layout with biases in q, k and v. Qwen3: none, and an RMS norm of each head of q and k.
// Source: transformers' Qwen2Config, Qwen3Config, modeling_qwen2 and modeling_qwen3.
#include <nlohmann/json.hpp>

#include "config_fields.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"
#include "llama.hpp"

namespace fedpdpo {
namespace {

constexpr std::int64_t kDefaultKvHeads = 32, kDefaultPositions = 32768, kDefaultWindow = 4096;

/// The window of the layers that have one counts for all: sequences that fit into it are the same either way.
void read_window(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  const bool in_use = json_optional<bool>(json, "use_sliding_window", file).value_or(false);
  bool some_layer = json_optional<std::int64_t>(json, "max_window_layers", file).value_or(28) < c.num_layers;
  if (json.contains("layer_types") && !json["layer_types"].is_null()) {
    some_layer = false;
    for (const nlohmann::json& type : json["layer_types"]) {
      if (type == "full_attention") continue;
      if (type != "sliding_attention" || !in_use)
        throw InputError(file.string(), "layer_types",
                         in_use ? "a list of \"full_attention\" and \"sliding_attention\""
                                : "a list of \"full_attention\", as use_sliding_window is not true",
                         type.dump());
      some_layer = true;
    }
  }
  if (in_use && some_layer) c.attention_window = read_sliding_window(json, kDefaultWindow, file);
}

void read_qwen2(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  read_llama_layout(json, file, {.num_kv_heads = kDefaultKvHeads, .max_positions = kDefaultPositions}, c);
  read_window(json, file, c);
  c.attention_bias = true;
}

void read_qwen3(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  read_llama_layout(json, file, {.num_kv_heads = kDefaultKvHeads, .head_dim = 128, .max_positions = kDefaultPositions},
                    c);
  read_window(json, file, c);
  c.attention_bias = c.output_bias = json_optional<bool>(json, "attention_bias", file).value_or(false);
  c.head_norm = true;
}

}  // namespace

const Family qwen2_family{"qwen2", "Qwen2ForCausalLM", read_qwen2, llama_sites, llama_names};
const Family qwen3_family{"qwen3", "Qwen3ForCausalLM", read_qwen3, llama_sites, llama_names};

}  // namespace fedpdpo
