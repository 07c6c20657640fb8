// Checkpoint folders on disk.
#include "checkpoint_folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/record/checkpoint.hpp"

namespace fedpdpo {

std::string checkpoint_folder_name(CheckpointId id) { return fmt::format("round-{:05}-{:02}", id.round, id.serial); }

std::optional<CheckpointId> parse_checkpoint_folder_name(std::string_view name) {
  CheckpointId id;
  constexpr std::string_view prefix = "round-";
  const std::size_t dash = name.rfind('-');
  if (!name.starts_with(prefix) || dash == std::string_view::npos || dash < prefix.size()) return std::nullopt;
  const char* end = name.data() + name.size();
  const char* middle = name.data() + dash;
  const auto round = std::from_chars(name.data() + prefix.size(), middle, id.round);
  const auto serial = std::from_chars(middle + 1, end, id.serial);
  if (round.ec != std::errc{} || round.ptr != middle || serial.ec != std::errc{} || serial.ptr != end) {
    return std::nullopt;
  }
  // Only names as we write them: "round-1-0" or "round--1-00" are somebody else's.
  return checkpoint_folder_name(id) == name ? std::optional(id) : std::nullopt;
}

bool is_checkpoint_file_name(std::string_view name) {
  constexpr std::string_view allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  return !name.empty() && name.front() != '.' && name.find_first_not_of(allowed) == std::string_view::npos;
}

std::vector<CheckpointId> list_checkpoints(const std::filesystem::path& directory) {
  std::vector<CheckpointId> found;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  if (error == std::errc::no_such_file_or_directory) return found;
  if (error) throw InputError(directory.string(), "", "a folder of checkpoints", error.message());
  while (entry != std::filesystem::directory_iterator()) {
    const auto id = parse_checkpoint_folder_name(entry->path().filename().string());
    if (id && id->round >= 0 && id->serial >= 0) found.push_back(*id);
    entry.increment(error);
    if (error) throw InputError(directory.string(), "", "a readable folder", error.message());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> checkpoint_names(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const CheckpointId id : list_checkpoints(directory)) names.push_back(checkpoint_folder_name(id));
  return names;
}

void remove_checkpoints(const std::filesystem::path& directory) {
  const std::vector<CheckpointId> ids = list_checkpoints(directory);
  if (!ids.empty()) remove_old_checkpoints(directory, ids.back(), 0);
}

void remove_old_checkpoints(const std::filesystem::path& directory, CheckpointId newest, int keep) {
  std::vector<CheckpointId> ids = list_checkpoints(directory);
  std::erase_if(ids, [&](CheckpointId id) { return id > newest; });
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < ids.size(); ++i) {
    const std::filesystem::path folder = directory / checkpoint_folder_name(ids[i]);
    std::error_code error;
    std::filesystem::remove(folder / manifest_name, error);  // first: half a checkpoint must not look whole
    if (!error) std::filesystem::remove_all(folder, error);
    if (error)
      log_warning(fmt::format("{}: the old checkpoint cannot be removed: {}", folder.string(), error.message()));
  }
}

}  // namespace fedpdpo
