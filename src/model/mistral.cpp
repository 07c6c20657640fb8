// Mistral: Llama's layout, without biases; attention to the latest sliding_window tokens.
// Source: transformers' MistralConfig and modeling_mistral.
#include <nlohmann/json.hpp>

#include "config_fields.hpp"
#include "llama.hpp"

namespace fedpdpo {
namespace {

void read_mistral(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& c) {
  read_llama_layout(json, file, {.num_kv_heads = 8, .max_positions = 131072}, c);
  c.attention_window = read_sliding_window(json, 4096, file);
}

}  // namespace

const Family mistral_family{"mistral", "MistralForCausalLM", read_mistral, llama_sites, llama_names};

}  // namespace fedpdpo
