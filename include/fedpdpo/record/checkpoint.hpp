// Checkpoints. One is a folder DIR/round-RRRRR-SS (round, and a serial number for stops within it) with a safetensors
// file per client, one for the server state, one for the history, and manifest.json, written last, that lists every
// file with its size and SHA-256: without a valid manifest, or with a file that does not match it, there is no
// checkpoint and the one before it is used. Files belong to clients, not ranks: any number of ranks can resume.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo {

/// Named arrays and texts: what one file of a checkpoint holds. put() keeps a view of the caller's memory, which must
/// stay until the file is written; put_copy() is for small arrays made on the way.
class StateFile {
 public:
  void put(std::string name, std::span<const float> values);
  void put(std::string name, std::span<const double> values);
  void put(std::string name, std::span<const std::int64_t> values);
  void put_copy(std::string name, std::span<const double> values);
  void put_copy(std::string name, std::span<const std::int64_t> values);
  void put_text(std::string name, std::string value);

  const std::vector<TensorToWrite>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& texts() const { return texts_; }

 private:
  void add(TensorToWrite tensor);

  std::vector<TensorToWrite> tensors_;                                // over the caller's memory, or over owned_
  std::vector<std::shared_ptr<const std::vector<std::byte>>> owned_;  // shared, so that copies stay valid
  std::map<std::string, std::string> texts_;
};

/// Writing: construct on every rank, add() for each file of this rank, commit() on every rank.
class CheckpointWriter {
 public:
  /// Collective: makes the folder (rank 0), without what an earlier attempt left in it, and waits for it. InputError
  /// on every rank if it cannot be made.
  CheckpointWriter(const Communicator& world, std::filesystem::path directory, int round, int serial);
  /// Writes NAME.safetensors (e.g. "client-00003", "server"), synced.
  void add(std::string_view name, const StateFile& state);
  /// Collective: rank 0 gathers names, sizes and hashes and writes the manifest with `facts` (what the run was:
  /// fingerprint of the options, round), then removes checkpoints older than the newest `keep` up to this one. Later
  /// ones are left alone: they are another run's, or damaged ones that this run was resumed before.
  void commit(const std::map<std::string, std::string>& facts, int keep = 2);

 private:
  const Communicator& world_;
  std::filesystem::path directory_;
  std::filesystem::path folder_;
  int round_;
  int serial_;
  std::string entries_;  // JSON lines: this rank's part of the manifest
};

/// Names of the checkpoints in a directory, whole or not, oldest first; none where there is no such directory.
std::vector<std::string> checkpoint_names(const std::filesystem::path& directory);
/// Removes them, and nothing else. What cannot be removed is warned about and stays.
void remove_checkpoints(const std::filesystem::path& directory);

/// Reading: the newest checkpoint below DIR that is whole.
class CheckpointReader {
 public:
  using Facts = std::map<std::string, std::string>;
  /// Rank 0 looks and checks every file's SHA-256, then tells the others (collective); nullopt where there is none. A
  /// torn or corrupt one is passed over with a warning that names the file; so is, in silence, one whose facts
  /// `wanted` (asked on rank 0, if given) does not take.
  static std::optional<CheckpointReader> find(const Communicator& world, const std::filesystem::path& directory,
                                              const std::function<bool(const Facts&)>& wanted = {});
  /// The checkpoint in this folder itself ("DIR/round-00012-00"), checked as above (collective). InputError, on every
  /// rank, where it is not whole.
  static CheckpointReader at(const Communicator& world, const std::filesystem::path& folder);

  int round() const { return round_; }
  int serial() const { return serial_; }
  const std::filesystem::path& folder() const { return folder_; }
  const Facts& facts() const { return facts_; }
  /// The fact of that name; InputError, naming the manifest, where there is none.
  const std::string& fact(const std::string& name) const;
  std::filesystem::path manifest() const;
  /// True where the manifest lists NAME.safetensors.
  bool contains(std::string_view name) const { return files_.find(name) != files_.end(); }
  /// InputError if the checkpoint has no such file.
  SafetensorsFile open(std::string_view name) const;

 private:
  static CheckpointReader read(const std::string& answer);

  std::filesystem::path folder_;
  int round_ = 0;
  int serial_ = 0;
  Facts facts_;
  std::set<std::string, std::less<>> files_;  // names without .safetensors
};

}  // namespace fedpdpo
