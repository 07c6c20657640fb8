// Names and order of checkpoint folders, shared by writing and reading.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fedpdpo {

inline constexpr const char* checkpoint_format = "fedpdpo-checkpoint";
inline constexpr std::int64_t checkpoint_version = 1;
inline constexpr const char* manifest_name = "manifest.json";
inline constexpr const char* state_suffix = ".safetensors";

struct CheckpointId {
  int round = 0;
  int serial = 0;
  auto operator<=>(const CheckpointId&) const = default;
};

/// "round-00012-00".
std::string checkpoint_folder_name(CheckpointId id);
/// The opposite; nullopt for any other name.
std::optional<CheckpointId> parse_checkpoint_folder_name(std::string_view name);
/// True for a name that stays within the folder: letters, digits, '-', '_' and '.', no dot in front.
bool is_checkpoint_file_name(std::string_view name);

/// Checkpoint folders below `directory`, whole or not, ascending; none where there is no such directory.
std::vector<CheckpointId> list_checkpoints(const std::filesystem::path& directory);
/// Of those up to `newest` keeps the last `keep`. What cannot be removed is warned about and stays.
void remove_old_checkpoints(const std::filesystem::path& directory, CheckpointId newest, int keep);

}  // namespace fedpdpo
