// What an exported model has beyond PEFT: the bottleneck adapter and the reward head, in fedpdpo_modules.safetensors,
// and fedpdpo_modules.json, which says what they are and where the model comes from.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "fedpdpo/model/trained_model.hpp"

namespace fedpdpo {

inline constexpr const char* modules_config_name = "fedpdpo_modules.json";
inline constexpr const char* modules_weights_name = "fedpdpo_modules.safetensors";

/// True where the model has one of these modules.
bool has_private_modules(const TrainedModel& model);

/// Writes the JSON file: `about` (an object) with "bottleneck" and "reward_head" added, null where there is none; and
/// the tensors, where there are any.
void write_private_modules(const std::filesystem::path& folder, const ModelConfig& config, const TrainedModel& model,
                           nlohmann::json about);

/// Adds the modules that the folder has to the model, which has none, and returns the JSON file's content; nothing is
/// done where there is no such file. InputError for what does not read or does not fit the model.
std::optional<nlohmann::json> add_private_modules(const std::filesystem::path& folder, const ModelConfig& config,
                                                  TrainedModel& model);

}  // namespace fedpdpo
