// adapter_config.json. Its fields are those of PEFT 0.21's LoraConfig; the ones that change what an adapter computes
// are read or must be off.
#include "peft_settings.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

std::string shown(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

bool is_off(const json& value) {
  return value.is_null() || value == json(false) || (value.is_structured() && value.empty());
}

/// Settings of LoRA's kin, all off in plain LoRA.
void require_plain(const json& config, const std::filesystem::path& file) {
  for (const char* field : {"use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication",
                            "alora_invocation_tokens", "arrow_config", "trainable_token_indices", "target_parameters",
                            "kasa_config", "velora_config", "monteclora_config"}) {
    const auto found = config.find(field);
    if (found != config.end() && !is_off(*found))
      throw InputError(file.string(), field, "none: this program reads plain LoRA", shown(*found));
  }
  const std::string bias = json_optional<std::string>(config, "bias", file).value_or("none");
  if (bias != "none") throw InputError(file.string(), "bias", "none", bias);
  // The others begin by changing the base's weights.
  const json start = config.value("init_lora_weights", json(true));
  if (start.is_string() && start != "gaussian" && start != "eva" && start != "orthogonal")
    throw InputError(file.string(), "init_lora_weights", "true, false, gaussian, eva or orthogonal", shown(start));
}

constexpr int most_rank = 4096;

/// PEFT's get_pattern_key: a pattern stands for the paths that it is or that end in it.
std::regex of_paths(const std::string& pattern) { return std::regex("(.*\\.)?(" + pattern + ")"); }

bool is_rank(double value) { return value >= 1 && value <= most_rank && value == std::floor(value); }
bool is_alpha(double value) { return value > 0; }

/// Numbers by pattern that are as `fits` has it, `expected` in words.
std::vector<std::pair<std::string, double>> patterns(const nlohmann::ordered_json& config, const char* field,
                                                     bool (*fits)(double), const std::string& expected,
                                                     const std::filesystem::path& file) {
  std::vector<std::pair<std::string, double>> result;
  const auto found = config.find(field);
  if (found == config.end() || found->is_null()) return result;
  if (!found->is_object()) throw InputError(file.string(), field, "an object", found->type_name());
  for (const auto& [pattern, value] : found->items()) {
    if (!value.is_number() || !fits(value.get<double>()))
      throw InputError(file.string(), field + ("." + pattern), expected, shown(value));
    try {
      static_cast<void>(std::regex(pattern));
      static_cast<void>(of_paths(pattern));
    } catch (const std::regex_error&) {
      throw InputError(file.string(), field, "regular expressions", pattern);
    }
    result.emplace_back(pattern, value.get<double>());
  }
  return result;
}

/// Of the first pattern that fits.
double by_pattern(const std::vector<std::pair<std::string, double>>& patterns, const std::string& module,
                  double otherwise) {
  for (const auto& [pattern, value] : patterns)
    if (std::regex_match(module, of_paths(pattern))) return value;
  return otherwise;
}

}  // namespace

int PeftSettings::rank_of(const std::string& module) const { return static_cast<int>(by_pattern(ranks, module, rank)); }

double PeftSettings::scale_of(const std::string& module) const {
  const double r = rank_of(module);
  return by_pattern(alphas, module, alpha) / (rank_stabilized ? std::sqrt(r) : r);
}

PeftSettings read_peft_settings(const std::filesystem::path& file, const std::string& head) {
  const json config = read_json(file);
  const auto type = json_required<std::string>(config, "peft_type", file);
  if (type != "LORA") throw InputError(file.string(), "peft_type", "LORA", type);
  const std::string task = json_optional<std::string>(config, "task_type", file).value_or("CAUSAL_LM");
  if (task != "CAUSAL_LM") throw InputError(file.string(), "task_type", "CAUSAL_LM", task);
  require_plain(config, file);
  PeftSettings settings;
  const auto rank = json_required<std::int64_t>(config, "r", file);
  const std::string a_rank = "a rank from 1 to " + std::to_string(most_rank);
  if (!is_rank(static_cast<double>(rank))) throw InputError(file.string(), "r", a_rank, std::to_string(rank));
  settings.rank = static_cast<int>(rank);
  settings.alpha = json_required<double>(config, "lora_alpha", file);
  if (!is_alpha(settings.alpha))
    throw InputError(file.string(), "lora_alpha", "a number above 0", std::to_string(settings.alpha));
  settings.dropout = json_optional<double>(config, "lora_dropout", file).value_or(0);
  settings.rank_stabilized = json_optional<bool>(config, "use_rslora", file).value_or(false);
  const MappedFile text(file);
  const auto* begin = reinterpret_cast<const char*>(text.bytes().data());
  const auto ordered = nlohmann::ordered_json::parse(begin, begin + text.bytes().size());
  settings.ranks = patterns(ordered, "rank_pattern", is_rank, a_rank, file);
  settings.alphas = patterns(ordered, "alpha_pattern", is_alpha, "a number above 0", file);
  const json saved = config.value("modules_to_save", json());
  if (!is_off(saved)) {
    settings.saves_head = saved == json::array({head});
    if (!settings.saves_head)
      throw InputError(file.string(), "modules_to_save", "none, or [\"" + head + "\"]", shown(saved));
  }
  return settings;
}

}  // namespace fedpdpo
