// The origin of an exported model.
#include "exported_folder.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/model/private_modules.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

std::string ExportedOrigin::name() const {
  if (client) return fmt::format("client {}", *client);
  return group ? fmt::format("shared {}", *group) : std::string();
}

ExportedOrigin exported_origin(const std::filesystem::path& folder, const nlohmann::json& about) {
  ExportedOrigin origin;
  origin.file = folder / modules_config_name;
  const auto part = [&](const char* name) { return about.value(name, nlohmann::json::object()); };
  const auto number = [&](const nlohmann::json& object, const char* field) -> std::optional<int> {
    const auto value = json_optional<std::int64_t>(object, field, origin.file);
    if (!value) return std::nullopt;
    if (*value < 0 || !std::in_range<int>(*value))
      throw InputError(origin.file.string(), fmt::format("model.{}", field), "a number from 0", std::to_string(*value));
    return static_cast<int>(*value);
  };
  const nlohmann::json base = part("base"), model = part("model");
  origin.base_path = json_optional<std::string>(base, "path", origin.file).value_or("");
  origin.base_hash = json_optional<std::string>(base, "sha256", origin.file).value_or("");
  origin.client = number(model, "client");
  origin.group = number(model, "group");
  origin.client_name = json_optional<std::string>(model, "name", origin.file).value_or("");
  origin.merged = json_optional<bool>(model, "merged", origin.file).value_or(false);
  origin.preferences_swapped = json_optional<bool>(model, "preferences_swapped", origin.file).value_or(false);
  return origin;
}

void require_base_of_merged(const ExportedOrigin& origin) {
  const std::string wanted = "the model that this one was merged from, or --reference DIR";
  const std::string file = origin.file.string();
  if (origin.base_path.empty() || origin.base_hash.empty())
    throw InputError(file, "base", wanted, "no path and sha256 of it");
  if (!std::filesystem::is_directory(origin.base_path))
    throw InputError(file, "base.path", wanted, "no folder " + origin.base_path);
  if (const std::string hash = ModelFolder(origin.base_path).content_hash(); hash != origin.base_hash)
    throw InputError(file, "base.sha256", wanted + ", content sha256 " + origin.base_hash,
                     fmt::format("{} of {}", hash, origin.base_path));
}

}  // namespace fedpdpo
