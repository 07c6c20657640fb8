// The layout of run.h5.
#include "fedpdpo/record/run_file.hpp"

#include <array>
#include <numeric>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {
namespace {

constexpr std::int64_t format_version = 1;

using Shape = std::vector<std::uint64_t>;

// The pairs of one split, client after client.
void write_split(Hdf5Writer& writer, const Partition& partition, std::size_t split) {
  std::vector<std::uint32_t> files;
  std::vector<std::uint64_t> indices;
  std::vector<std::uint64_t> offsets{0};
  for (const ClientShare& client : partition.clients) {
    for (const PairId id : client.pairs[split]) {
      files.push_back(id.file);
      indices.push_back(id.index);
    }
    offsets.push_back(indices.size());
  }
  const std::string name = split_names[split];
  const std::string group = "/partition/" + name;
  writer.write_list(group + "/file", files, "index", "pair file of each " + name + " pair, in the order of --data");
  writer.write_list(group + "/pair", indices, "index", "position of each " + name + " pair in its file");
  writer.write_list(group + "/offsets", offsets, "pairs",
                    "client c's " + name + " pairs are entries offsets[c] up to offsets[c + 1]");
}

}  // namespace

RunFile::RunFile(std::filesystem::path path) : path_(std::move(path)) {
  writer_.attribute<std::string>("/", "format", "fedpdpo-run");
  writer_.attribute<std::int64_t>("/", "version", format_version);
  // Present in every file, so that readers need not ask.
  for (const char* group : {"/config", "/environment", "/partition", "/rounds", "/clients", "/timings"}) {
    writer_.group(group);
  }
}

void RunFile::write_config(const std::map<std::string, std::string>& options, const std::string& command_line) {
  writer_.attributes("/config", options);
  writer_.attribute<std::string>("/config", "command_line", command_line);
}

void RunFile::write_environment(const std::map<std::string, std::string>& facts) {
  writer_.attributes("/environment", facts);
}

void RunFile::write_partition(const PairSet& pairs, const Partition& partition) {
  const std::size_t num_clients = partition.clients.size();
  std::vector<std::string> client_names;
  std::vector<std::int32_t> client_domain;
  std::vector<double> flipped, is_new;
  for (const ClientShare& client : partition.clients) {
    client_names.push_back(client.name);
    client_domain.push_back(client.domain);
    flipped.push_back(client.flipped ? 1 : 0);
    is_new.push_back(client.is_new ? 1 : 0);
  }
  std::vector<std::string> domain_names;
  for (const PairFile& file : pairs.files) domain_names.push_back(file.domain);

  writer_.write_strings("/partition/client_names", client_names, "name", "names of the clients");
  writer_.write_list("/partition/client_domain", client_domain, "index", "domain of each client");
  writer_.write_strings("/partition/domain_names", domain_names, "name", "names of the domains, one a pair file");
  writer_.write_strings("/partition/label_names", pairs.label_names, "name", "names of the categories");
  writer_.write<std::int64_t>("/partition/label_histogram", partition.label_histogram(pairs),
                              Shape{num_clients, split_names.size(), pairs.label_names.size()}, "pairs",
                              "pairs by client, split (train, validation, test) and category");
  writer_.write_list("/partition/flipped", flipped, "1",
                     "1 for clients whose pairs have chosen and rejected swapped, else 0");
  writer_.write_list("/partition/is_new", is_new, "1", "1 for clients that never train, else 0");
  for (std::size_t split = 0; split < split_names.size(); ++split) write_split(writer_, partition, split);
}

void RunFile::write_history(const History& history) {
  std::vector<std::int64_t> rounds(history.num_rows());
  std::iota(rounds.begin(), rounds.end(), 0);
  writer_.write_list("/rounds/round", rounds, "round", "number of the round; 0 is the state before training");
  for (const auto& [path, series] : history.series()) {
    Shape shape{history.num_rows()};
    // A federation of one client is a federation: its axis stays.
    if (series.width != 1 || path.starts_with("/clients/")) shape.push_back(series.width);
    writer_.write<double>(path, series.values, shape, series.units, series.description);
  }
}

void RunFile::write_final(const FinalMargins& margins) {
  const std::size_t count = margins.client.size();
  check(margins.pair.size() == count && margins.margin.size() == count && margins.margin_implicit.size() == count &&
            margins.margin_explicit.size() == count,
        "final margins of different lengths");
  std::vector<std::uint32_t> files;
  std::vector<std::uint64_t> indices;
  for (const PairId id : margins.pair) {
    files.push_back(id.file);
    indices.push_back(id.index);
  }
  writer_.write_list("/final/test/client", margins.client, "index", "client that each test pair belongs to");
  writer_.write_list("/final/test/file", files, "index", "pair file of each test pair, in the order of --data");
  writer_.write_list("/final/test/pair", indices, "index", "position of each test pair in its file");
  writer_.write_list("/final/test/margin", margins.margin, "nat",
                     "margin of chosen over rejected by the client's final model: implicit + lambda * explicit");
  writer_.write_list("/final/test/margin_implicit", margins.margin_implicit, "nat",
                     "implicit margin: beta * difference of the log-ratios of policy and reference");
  writer_.write_list("/final/test/margin_explicit", margins.margin_explicit, "nat",
                     "explicit margin: difference of the reward head's outputs, before lambda");
}

void RunFile::write_cross(const CrossEvaluation& cross) {
  check(cross.accuracy.size() == cross.num_clients * cross.num_clients, "a square matrix");
  writer_.write<double>("/final/cross/accuracy", cross.accuracy, Shape{cross.num_clients, cross.num_clients}, "1",
                        "test accuracy of client i's final model (row) on client j's test pairs (column)");
}

void RunFile::write_new_clients(const NewClients& clients) {
  const std::string at = "/final/new_clients/";
  writer_.group("/final/new_clients");
  writer_.attribute<std::int64_t>("/final/new_clients", "steps", clients.steps);
  writer_.write_list(at + "client", clients.client, "index", "clients that never took part in a round");
  writer_.write_list(at + "group", clients.group, "index", "aggregation group whose LoRA each of them received");
  writer_.write_list(at + "accuracy_received", clients.accuracy_received, "1",
                     "test accuracy with the received LoRA, private modules at their start");
  writer_.write_list(at + "accuracy_fitted", clients.accuracy_fitted, "1",
                     "test accuracy after `steps` steps of fitting the private modules on the client's train pairs");
  writer_.write_list(at + "loss_fitted", clients.loss_fitted, "nat", "test loss after fitting");
}

void RunFile::flush() {
  writer_.attribute<std::string>("/", "status", "running");
  writer_.save(partial_path(path_));
}

void RunFile::finish() {
  writer_.attribute<std::string>("/", "status", "complete");
  writer_.save(partial_path(path_));
  std::error_code error;
  std::filesystem::rename(partial_path(path_), path_, error);
  if (error) throw InputError(path_.string(), "", "a file that can be replaced", error.message());
  sync_folder(path_.parent_path());
}

std::filesystem::path RunFile::partial_path(const std::filesystem::path& path) {
  std::filesystem::path partial = path;
  partial += ".partial";
  return partial;
}

}  // namespace fedpdpo
