// Checkpoints: finding the newest one that is whole. The manifest and the files may be torn or altered in any way.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint_folder.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/record/checkpoint.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

void require_field(bool good, const std::filesystem::path& file, std::string_view field, std::string_view expected,
                   const json& found) {
  if (!good) {
    throw InputError(file.string(), field, expected, found.dump(-1, ' ', false, json::error_handler_t::replace));
  }
}

// Checks one file against its entry; returns its name without the suffix.
std::string require_whole_file(const std::filesystem::path& folder, const json& entry,
                               const std::filesystem::path& manifest) {
  const auto name = json_required<std::string>(entry, "name", manifest);
  require_field(is_checkpoint_file_name(name) && name.ends_with(state_suffix), manifest, "name",
                "a plain *.safetensors name", entry);
  const std::filesystem::path file = folder / name;
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  if (error) throw InputError(file.string(), "", "a file of the checkpoint", error.message());
  const auto expected_size = json_required<std::int64_t>(entry, "size", manifest);
  if (std::cmp_not_equal(size, expected_size)) {
    throw InputError(file.string(), "", fmt::format("{} bytes", expected_size), fmt::format("{} bytes", size));
  }
  const auto expected_hash = json_required<std::string>(entry, "sha256", manifest);
  const std::string hash = sha256_file(file);
  if (hash != expected_hash) throw InputError(file.string(), "", "SHA-256 " + expected_hash, hash);
  return name.substr(0, name.size() - std::string_view(state_suffix).size());
}

// What the other ranks are told about a whole checkpoint: {"facts": {...}, "files": [names]}.
json require_whole(const std::filesystem::path& folder, CheckpointId id) {
  const std::filesystem::path path = folder / manifest_name;
  const json manifest = read_json(path);
  const auto format = json_required<std::string>(manifest, "format", path);
  require_field(format == checkpoint_format, path, "format", checkpoint_format, format);
  const auto version = json_required<std::int64_t>(manifest, "version", path);
  require_field(version == checkpoint_version, path, "version", std::to_string(checkpoint_version), version);
  const auto round = json_required<std::int64_t>(manifest, "round", path);
  const auto serial = json_required<std::int64_t>(manifest, "serial", path);
  if (round != id.round || serial != id.serial) {
    throw InputError(path.string(), "round and serial", fmt::format("{} and {}", id.round, id.serial),
                     fmt::format("{} and {}", round, serial));
  }
  const json facts = manifest.value("facts", json());
  require_field(facts.is_object() && std::ranges::all_of(facts, [](const json& fact) { return fact.is_string(); }),
                path, "facts", "an object of strings", facts);
  const json entries = manifest.value("files", json());
  require_field(entries.is_array(), path, "files", "a list", entries);
  json names = json::array();
  for (const json& entry : entries) names.push_back(require_whole_file(folder, entry, path));
  return {{"facts", facts}, {"files", names}};
}

// What the others are told of a checkpoint: {"folder", "round", "serial", "facts", "files"}.
json description(const std::filesystem::path& folder, CheckpointId id) {
  json found = require_whole(folder, id);
  found["folder"] = folder.string();
  found["round"] = id.round;
  found["serial"] = id.serial;
  return found;
}

// Rank 0's search: a description, null where there is none, a string where it went wrong.
json search(const std::filesystem::path& directory, const std::function<bool(const CheckpointReader::Facts&)>& wanted) {
  try {
    std::vector<CheckpointId> ids = list_checkpoints(directory);
    std::reverse(ids.begin(), ids.end());
    for (const CheckpointId id : ids) {
      const std::filesystem::path folder = directory / checkpoint_folder_name(id);
      try {
        json found = description(folder, id);
        if (!wanted || wanted(found.at("facts").get<CheckpointReader::Facts>())) return found;
      } catch (const InputError& error) {
        log_warning(fmt::format("checkpoint {} is not whole and is passed over: {}", folder.string(), error.what()));
      }
    }
    return nullptr;
  } catch (const InputError& error) {
    return std::string(error.what());
  }
}

}  // namespace

std::optional<CheckpointReader> CheckpointReader::find(const Communicator& world,
                                                       const std::filesystem::path& directory,
                                                       const std::function<bool(const Facts&)>& wanted) {
  std::string answer;
  if (world.rank() == 0) answer = search(directory, wanted).dump(-1, ' ', false, json::error_handler_t::replace);
  answer = world.broadcast(answer, 0);
  if (json::parse(answer).is_null()) return std::nullopt;
  return read(answer);
}

CheckpointReader CheckpointReader::at(const Communicator& world, const std::filesystem::path& folder) {
  json answer;
  if (world.rank() == 0) {
    try {
      // A trailing slash is not part of the name.
      const std::filesystem::path named = (folder / "").parent_path();
      const std::string name = named.filename().string();
      const auto id = parse_checkpoint_folder_name(name);
      if (!id) throw InputError(folder.string(), "", "a folder named as round-00012-00", name);
      answer = description(named, *id);
    } catch (const InputError& error) {
      answer = error.what();
    }
  }
  return read(world.broadcast(answer.dump(-1, ' ', false, json::error_handler_t::replace), 0));
}

CheckpointReader CheckpointReader::read(const std::string& answer) {
  const json found = json::parse(answer);
  if (found.is_string()) throw InputError(found.get<std::string>());
  CheckpointReader reader;
  reader.round_ = found.at("round");
  reader.serial_ = found.at("serial");
  reader.folder_ = found.at("folder").get<std::string>();
  reader.facts_ = found.at("facts").get<Facts>();
  for (const json& name : found.at("files")) reader.files_.insert(name.get<std::string>());
  return reader;
}

std::filesystem::path CheckpointReader::manifest() const { return folder_ / manifest_name; }

const std::string& CheckpointReader::fact(const std::string& name) const {
  const auto found = facts_.find(name);
  if (found == facts_.end()) throw InputError(manifest().string(), "facts." + name, "a text", "none");
  return found->second;
}

SafetensorsFile CheckpointReader::open(std::string_view name) const {
  if (!contains(name)) {
    throw InputError(folder_.string(), name, "a file of the checkpoint's manifest", "none");
  }
  return SafetensorsFile(folder_ / (std::string(name) + state_suffix));
}

}  // namespace fedpdpo
