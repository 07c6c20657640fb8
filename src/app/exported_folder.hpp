// What `export` notes beside a model, in fedpdpo_modules.json, as `eval` and `inspect` read it.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace fedpdpo {

/// Where an exported model comes from. Other programs' files may lack any of it.
struct ExportedOrigin {
  std::filesystem::path file;        ///< fedpdpo_modules.json itself, for messages
  std::string base_path, base_hash;  ///< the base model's folder and content sha256; empty: not noted
  std::optional<int> client, group;  ///< a client's model, or what the clients of a group share
  std::string client_name;           ///< empty: not noted
  bool merged = false;               ///< the folder is a whole model
  bool preferences_swapped = false;  ///< the client's, in its run

  /// "client 3" or "shared 0"; empty where it is not noted.
  std::string name() const;
};

/// Of the content of `folder`'s fedpdpo_modules.json. InputError names a field of another type.
ExportedOrigin exported_origin(const std::filesystem::path& folder, const nlohmann::json& about);

/// InputError unless the model that a merged one was made from is where it was, the very content by its sha256; it says
/// that --reference can name it.
void require_base_of_merged(const ExportedOrigin& origin);

}  // namespace fedpdpo
