// What an exported folder says of itself, to programs and to people.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "fedpdpo/fed/saved_federation.hpp"

namespace fedpdpo {

/// One model of a federation.
struct ExportedModel {
  const SavedFederation& federation;
  const TrainedModel& model;
  int client = -1;  ///< -1: what all clients of the group share
  int group = 0;
  bool merged = false;
  std::filesystem::path base;  ///< folder of the base model
};

/// Where it comes from, for fedpdpo_modules.json: base, run, model, the loss that its margins are of.
nlohmann::json provenance(const ExportedModel& exported);
/// README.md.
std::string model_card(const ExportedModel& exported);

}  // namespace fedpdpo
