// What Llama shares with the families that have its layout.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "family.hpp"

namespace fedpdpo {

/// What holds where config.json leaves a field out.
struct LlamaDefaults {
  std::int64_t num_kv_heads = 0;  ///< 0: as many as heads
  std::int64_t head_dim = 0;      ///< 0: hidden size / heads
  std::int64_t max_positions = 2048;
};

/// Everything but biases, attention windows and sites.
void read_llama_layout(const nlohmann::json& json, const std::filesystem::path& file, const LlamaDefaults& defaults,
                       ModelConfig& config);
std::vector<LinearSite> llama_sites(const ModelConfig& config);
FamilyNames llama_names();

}  // namespace fedpdpo
