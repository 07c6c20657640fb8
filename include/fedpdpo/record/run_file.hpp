// run.h5, the one file that a run leaves (design 6). While the run goes on it is PATH.partial, a whole and valid file
// at every moment; finish() gives it its name. Rank 0 only.
//
// Groups whose values may differ between two runs of the same options and seed: /environment and /timings; everything
// else is a pure function of options, seed and input.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "fedpdpo/data/pairs.hpp"
#include "fedpdpo/data/partition.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "fedpdpo/record/history.hpp"

namespace fedpdpo {

/// Margins of every test pair of every client at the end, in client order.
struct FinalMargins {
  std::vector<std::int32_t> client;
  std::vector<PairId> pair;
  std::vector<double> margin, margin_implicit, margin_explicit;
};

/// Test accuracy of every client's final model on every client's test pairs: (C, C), row-major, model by data.
struct CrossEvaluation {
  std::size_t num_clients = 0;
  std::vector<double> accuracy;
};

/// Clients that never trained, at the end of the run: by client, test accuracy with what the server gives (LoRA alone)
/// and after fitting their private modules.
struct NewClients {
  int steps = 0;  ///< of fitting
  std::vector<std::int32_t> client, group;
  std::vector<double> accuracy_received, accuracy_fitted, loss_fitted;
};

class RunFile {
 public:
  /// `path` is the final name.
  explicit RunFile(std::filesystem::path path);

  /// /config attributes: the options, and "command_line".
  void write_config(const std::map<std::string, std::string>& options, const std::string& command_line);
  void write_environment(const std::map<std::string, std::string>& facts);
  /// /partition: client_names, client_domain, domain_names, label_names, label_histogram (C, 3, L), flipped, and per
  /// split {file uint32, pair uint64, offsets uint64 (C + 1)}.
  void write_partition(const PairSet& pairs, const Partition& partition);
  /// /rounds/round and every series of the history.
  void write_history(const History& history);
  void write_final(const FinalMargins& margins);
  void write_cross(const CrossEvaluation& cross);
  void write_new_clients(const NewClients& clients);

  /// Saves PATH.partial with status "running".
  void flush();
  /// Saves with status "complete", renames PATH.partial to PATH.
  void finish();

  static std::filesystem::path partial_path(const std::filesystem::path& path);

 private:
  std::filesystem::path path_;
  Hdf5Writer writer_;
};

}  // namespace fedpdpo
