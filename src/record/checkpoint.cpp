// Checkpoints: writing of the files and the manifest, removal of old ones.
#include "fedpdpo/record/checkpoint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint_folder.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {

using nlohmann::json;

void StateFile::add(TensorToWrite tensor) {
  for (const TensorToWrite& other : tensors_) check(other.name != tensor.name, "a state array put twice");
  tensors_.push_back(std::move(tensor));
}

void StateFile::put(std::string name, std::span<const float> values) { add(tensor_to_write(std::move(name), values)); }

void StateFile::put(std::string name, std::span<const double> values) { add(tensor_to_write(std::move(name), values)); }

void StateFile::put(std::string name, std::span<const std::int64_t> values) {
  add(tensor_to_write(std::move(name), values));
}

void StateFile::put_copy(std::string name, std::span<const double> values) {
  TensorToWrite tensor = tensor_to_write(std::move(name), values);
  owned_.push_back(std::make_shared<const std::vector<std::byte>>(tensor.bytes.begin(), tensor.bytes.end()));
  tensor.bytes = *owned_.back();
  add(std::move(tensor));
}

void StateFile::put_copy(std::string name, std::span<const std::int64_t> values) {
  TensorToWrite tensor = tensor_to_write(std::move(name), values);
  owned_.push_back(std::make_shared<const std::vector<std::byte>>(tensor.bytes.begin(), tensor.bytes.end()));
  tensor.bytes = *owned_.back();
  add(std::move(tensor));
}

void StateFile::put_text(std::string name, std::string value) {
  check(texts_.emplace(std::move(name), std::move(value)).second, "a state text put twice");
}

CheckpointWriter::CheckpointWriter(const Communicator& world, std::filesystem::path directory, int round, int serial)
    : world_(world), directory_(std::move(directory)), round_(round), serial_(serial) {
  check(round >= 0 && serial >= 0, "a checkpoint of a negative round or serial number");
  folder_ = directory_ / checkpoint_folder_name({round, serial});
  std::string trouble;
  if (world_.rank() == 0) {
    try {
      std::filesystem::remove_all(folder_);
      std::filesystem::create_directories(folder_);
    } catch (const std::filesystem::filesystem_error& error) {
      trouble = InputError(folder_.string(), "", "a folder that can be made", error.code().message()).what();
    }
  }
  // The answer is the barrier as well.
  trouble = world_.broadcast(trouble, 0);
  if (!trouble.empty()) throw InputError(trouble);
}

void CheckpointWriter::add(std::string_view name, const StateFile& state) {
  check(is_checkpoint_file_name(name), "a checkpoint's file name must be plain: " + std::string(name));
  const std::string file_name = std::string(name) + state_suffix;
  const std::filesystem::path path = folder_ / file_name;
  const std::string hash = write_safetensors(path, state.tensors(), state.texts());
  const json entry{{"name", file_name}, {"size", std::filesystem::file_size(path)}, {"sha256", hash}};
  entries_ += entry.dump() + '\n';
}

void CheckpointWriter::commit(const std::map<std::string, std::string>& facts, int keep) {
  check(keep >= 1, "a checkpoint must keep itself");
  const auto gathered = world_.gather(std::as_bytes(std::span(entries_)), 0);
  std::string trouble;
  if (world_.rank() == 0) {
    try {
      std::map<std::string, json> files;  // sorted, whatever rank they are from
      for (const std::vector<std::byte>& part : gathered) {
        std::string_view lines(reinterpret_cast<const char*>(part.data()), part.size());
        for (std::size_t end = lines.find('\n'); end != std::string_view::npos; end = lines.find('\n')) {
          json entry = json::parse(lines.substr(0, end));
          lines.remove_prefix(end + 1);
          const std::string name = entry.at("name");
          check(files.emplace(name, std::move(entry)).second, "two ranks wrote the same checkpoint file: " + name);
        }
      }
      json manifest{{"format", checkpoint_format},
                    {"version", checkpoint_version},
                    {"round", round_},
                    {"serial", serial_},
                    {"facts", facts},
                    {"files", json::array()}};
      for (auto& [name, entry] : files) manifest["files"].push_back(std::move(entry));
      // Every file's folder entry must be on disk before the manifest vouches for it: each write has synced the folder.
      write_file_atomically(folder_ / manifest_name,
                            manifest.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
      sync_folder(directory_);
      remove_old_checkpoints(directory_, {round_, serial_}, keep);
    } catch (const InputError& error) {
      trouble = error.what();
    }
  }
  trouble = world_.broadcast(trouble, 0);
  if (!trouble.empty()) throw InputError(trouble);
}

}  // namespace fedpdpo
