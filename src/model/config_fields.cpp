// Rotary settings, GELUs and attention windows of config.json.
// Source: transformers' modeling_rope_utils (convert_rope_params_to_dict, standardize_rope_params) and activations.
#include "config_fields.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

void read_scaling(const nlohmann::json& scaling, const std::string& field, const std::filesystem::path& file,
                  ModelConfig& config) {
  // Settings by layer type ("full_attention": {...}).
  for (const auto& [name, value] : scaling.items())
    if (value.is_object())
      throw InputError(file.string(), field + "." + name, "one set of rotary settings for all layers", "an object");
  const std::string type = json_optional<std::string>(scaling, "rope_type", file)
                               .value_or(json_optional<std::string>(scaling, "type", file).value_or("default"));
  if (type == "default") return;
  if (type != "llama3") throw InputError(file.string(), field + ".rope_type", "\"default\" or \"llama3\"", type);
  config.rope_scaling.factor = json_required<double>(scaling, "factor", file);
  config.rope_scaling.low_frequency_factor = json_required<double>(scaling, "low_freq_factor", file);
  config.rope_scaling.high_frequency_factor = json_required<double>(scaling, "high_freq_factor", file);
  config.rope_scaling.original_positions =
      json_required<std::int64_t>(scaling, "original_max_position_embeddings", file);
}

}  // namespace

void read_rope(const nlohmann::json& json, const std::filesystem::path& file, const RotaryFields& fields,
               ModelConfig& config) {
  config.rope_theta = json_optional<double>(json, fields.theta, file).value_or(10000.0);
  double fraction = json_optional<double>(json, fields.fraction, file).value_or(fields.default_fraction);
  std::string fraction_field = fields.fraction;
  std::string found;
  for (const char* field : {"rope_parameters", "rope_scaling"})
    if (json.contains(field) && json[field].is_object() && !json[field].empty()) found = field;
  if (!found.empty()) {
    const nlohmann::json& settings = json[found];
    read_scaling(settings, found, file, config);
    config.rope_theta = json_optional<double>(settings, "rope_theta", file).value_or(config.rope_theta);
    if (const auto own = json_optional<double>(settings, "partial_rotary_factor", file)) {
      fraction = *own;
      fraction_field = found + ".partial_rotary_factor";
    }
  }
  if (!(config.rope_theta > 0))
    throw InputError(file.string(), fields.theta, "a positive number", fmt::format("{}", config.rope_theta));
  if (!(fraction >= 0 && fraction <= 1))
    throw InputError(file.string(), fraction_field, "a number from 0 to 1", fmt::format("{}", fraction));
  config.rotary_dim = config.head_dim;
  if (fraction != 1) config.rotary_dim = static_cast<std::int64_t>(static_cast<double>(config.head_dim) * fraction);
  if (fields.default_fraction == 1 && fraction != 1)
    throw InputError(file.string(), fraction_field, "1", fmt::format("{}", fraction));
}

Activation read_gelu(const nlohmann::json& json, std::string_view field, std::string_view if_absent,
                     const std::filesystem::path& file) {
  const std::string name = json_optional<std::string>(json, field, file).value_or(std::string(if_absent));
  if (name == "gelu") return Activation::gelu_erf;
  if (name == "gelu_new" || name == "gelu_fast" || name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  throw InputError(file.string(), field, "\"gelu_new\" or \"gelu\"", name);
}

std::int64_t read_sliding_window(const nlohmann::json& json, std::int64_t if_absent,
                                 const std::filesystem::path& file) {
  if (!json.contains("sliding_window")) return if_absent;
  const auto window = json_optional<std::int64_t>(json, "sliding_window", file);
  if (!window) return 0;
  if (*window <= 0)
    throw InputError(file.string(), "sliding_window", "a positive number or null", fmt::format("{}", *window));
  return *window;
}

}  // namespace fedpdpo
