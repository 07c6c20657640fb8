// Fields of config.json that several families have, read alike.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "fedpdpo/model/config.hpp"

namespace fedpdpo {

/// Where checkpoints from before transformers 5 keep a family's rotary settings, and what holds where none does.
struct RotaryFields {
  const char* theta = "rope_theta";
  const char* fraction = "partial_rotary_factor";
  double default_fraction = 1;
};

/// rope_theta, rope_scaling and rotary_dim, from rope_parameters (transformers 5) or rope_scaling and the fields named.
/// InputError for a rope_type other than "default" and "llama3" and for settings by layer type. config.head_dim is set.
void read_rope(const nlohmann::json& json, const std::filesystem::path& file, const RotaryFields& fields,
               ModelConfig& config);

/// A field that names a GELU: exact ("gelu") or by tanh ("gelu_new", "gelu_fast", "gelu_pytorch_tanh").
Activation read_gelu(const nlohmann::json& json, std::string_view field, std::string_view if_absent,
                     const std::filesystem::path& file);

/// sliding_window, for models that use it; `if_absent` where the field is not there, 0 (all) where it is null.
std::int64_t read_sliding_window(const nlohmann::json& json, std::int64_t if_absent, const std::filesystem::path& file);

}  // namespace fedpdpo
