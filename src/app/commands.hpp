// The subcommands and what they share: input read and checked once, the backbone in the node's shared memory, the plan.
#pragma once

#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>

#include "fedpdpo/app/command_line.hpp"
#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/data/placement.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo {

int run_command(const Communicator& world, const CommandLine& line);
int plan_command(const Communicator& world, const CommandLine& line);
int partition_command(const Communicator& world, const CommandLine& line);
int export_command(const Communicator& world, const CommandLine& line);
int evaluate_command(const Communicator& world, const CommandLine& line);
int inspect_command(const Communicator& world, const CommandLine& line);
int bench_command(const Communicator& world, const CommandLine& line);

/// Runs `work` on every rank; if it throws InputError anywhere, the message of the lowest such rank is thrown on all.
template <class Work>
auto on_all_ranks(const Communicator& world, Work work) -> decltype(work());

/// Model folder, pairs and partition of a run; the same on every rank.
struct RunInput {
  ModelFolder model;
  PairSet pairs;
  Partition partition;
};

/// InputError if `read`, tried in a child process first, does not survive: HDF5 1.10 crashes on some damaged files.
void require_sound_hdf5(const std::filesystem::path& path, const std::function<void()>& read);

/// InputError, naming --out, where there is a file that --overwrite does not give free, or none can be written.
void require_output_file(const RunOptions& options);

RunInput read_input(const Communicator& world, const RunOptions& options);
/// Pairs and partition where there is no model to check against.
struct PartitionInput {
  PairSet pairs;
  Partition partition;
};
PartitionInput read_pairs_and_partition(const Communicator& world, const RunOptions& options);
/// Collective. Pair files, each read in a child process first.
PairSet read_pairs(const Communicator& world, std::span<const std::filesystem::path> paths);
/// InputError unless the pairs were made for this model and fit it.
void require_fitting(const PairSet& pairs, const ModelFolder& model);

/// Collective. The backend that --device asks for. InputError, on every rank, where one has no such device.
std::unique_ptr<Backend> make_backend(const Communicator& world, const RunOptions& options);
DType weight_type(const RunOptions& options);

/// The backbone, one copy a node, and one a device.
struct Backbone {
  NodeBuffer memory;
  std::shared_ptr<void> device_memory;
  Weights weights;
};
Backbone load_backbone(const Communicator& world, Backend& backend, const ModelFolder& model, DType dtype);

/// Work of a client in a round, in packed rows weighted by passes: what placement balances.
std::vector<double> client_costs(const RunInput& input, const RunOptions& options, const FederatedMethod& method);

/// Pairs, and their packed rows, that go through a model for an evaluation, each as often as it does.
struct EvaluatedPairs {
  double pairs = 0, rows = 0;
  EvaluatedPairs& operator+=(const EvaluatedPairs& other) {
    pairs += other.pairs;
    rows += other.rows;
    return *this;
  }
};
struct ClientEvaluations {
  EvaluatedPairs start, rounds, end;  ///< before the first round; in all rounds; after the last one
};
/// Work of a run that nothing interrupts, as planned_evaluations() of fed counts it.
struct RunWork {
  int evaluated_rounds = 0;      ///< beside the start
  int points = 2;                ///< evaluations in each of them
  std::vector<double> training;  ///< by client, of a round: client_costs() without evaluation and new clients
  std::vector<ClientEvaluations> evaluations;  ///< by client
};
/// `shared_size` is the layout's.
RunWork run_work(const RunInput& input, const RunOptions& options, const FederatedMethod& method,
                 std::size_t shared_size);

/// Useful floating-point operations (multiplications and additions) of packed rows and targets.
struct Operations {
  double forward = 0, backward = 0;
  double total() const { return forward + backward; }
};
/// `rows` packed rows, `targets` predicting rows, `attended` (query, key) pairs; counts the frozen maps, LoRA,
/// attention and the head; weight gradients only where something is trained.
Operations count_operations(const ModelConfig& config, const ParameterLayout& layout, double rows, double targets,
                            double attended);
/// Operations of a batch.
Operations count_operations(const ModelConfig& config, const ParameterLayout& layout, const PackedBatch& batch);

/// What the run was made on: versions, hardware, placement.
std::map<std::string, std::string> environment_facts(const Communicator& world, const Backend& backend,
                                                     const RunOptions& options, const Placement& placement);
std::string version_line();
/// "1.2 GiB".
std::string bytes_text(double bytes);

template <class Work>
auto on_all_ranks(const Communicator& world, Work work) -> decltype(work()) {
  std::optional<decltype(work())> result;
  std::string message;
  std::int64_t failed = 0;
  try {
    result.emplace(work());
  } catch (const InputError& error) {
    message = error.what();
    failed = world.size() - world.rank();
  }
  std::int64_t highest = failed;
  world.max(std::span(&highest, 1));
  if (highest > 0) throw InputError(world.broadcast(message, world.size() - static_cast<int>(highest)));
  return std::move(*result);
}

}  // namespace fedpdpo
