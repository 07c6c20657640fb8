// Reading what a run is given, and the plan that follows from it.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "commands.hpp"
#include "fedpdpo/app/device.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/evaluation_schedule.hpp"
#include "fedpdpo/io/child.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/model/private_modules.hpp"

namespace fedpdpo {

void require_sound_hdf5(const std::filesystem::path& path, const std::function<void()>& read) {
  if (!survives_in_child(read))
    throw InputError(path.string(), "", "a sound HDF5 file", "damage on which the HDF5 library crashes");
}

PairSet read_pairs(const Communicator& world, std::span<const std::filesystem::path> paths) {
  on_all_ranks(world, [&] {
    if (world.rank() == 0)
      for (const std::filesystem::path& path : paths) require_sound_hdf5(path, [&] { read_pair_file(path); });
    return 0;
  });
  return on_all_ranks(world, [&] { return read_pair_set(paths); });
}

namespace {

/// Several clients share a file, and no file has pairs of two categories.
bool skews_sizes_only(const PairSet& pairs, const Partition& partition) {
  if (partition.clients.size() <= pairs.files.size()) return false;
  return std::all_of(pairs.files.begin(), pairs.files.end(), [](const PairFile& file) {
    return std::adjacent_find(file.label.begin(), file.label.end(), std::not_equal_to<>()) == file.label.end();
  });
}

}  // namespace

PartitionInput read_pairs_and_partition(const Communicator& world, const RunOptions& options) {
  PairSet pairs = read_pairs(world, options.data);
  Partition partition = on_all_ranks(world, [&] { return make_partition(pairs, options.partition); });
  if (world.rank() == 0 && options.partition.kind == PartitionKind::dirichlet && skews_sizes_only(pairs, partition))
    log_warning("--partition dirichlet: every file's pairs have one category, so that clients differ in size alone");
  return {std::move(pairs), std::move(partition)};
}

void require_fitting(const PairSet& pairs, const ModelFolder& model) {
  require_matching_tokenizer(pairs, model.tokenizer_sha256(), model.config().vocab_size, model.path());
  const ModelConfig& config = model.config();
  for (const PairFile& file : pairs.files) {
    if (file.max_length > config.table_positions())
      throw InputError(file.path.string(), "max_length",
                       fmt::format("at most the model's {} positions", config.table_positions()),
                       fmt::format("{}", file.max_length));
    if (!config.attends_in_full(file.max_length))
      throw InputError(file.path.string(), "max_length",
                       fmt::format("at most the {} tokens of the model's sliding_window, which is not applied here",
                                   config.attention_window),
                       fmt::format("{}", file.max_length));
  }
}

RunInput read_input(const Communicator& world, const RunOptions& options) {
  ModelFolder model = on_all_ranks(world, [&] { return ModelFolder(options.model); });
  auto [pairs, partition] = read_pairs_and_partition(world, options);
  on_all_ranks(world, [&] {
    require_fitting(pairs, model);
    if (world.rank() == 0 && std::filesystem::exists(options.model / modules_weights_name))
      log_warning(
          fmt::format("{}: its {} is not part of what a run trains on", options.model.string(), modules_weights_name));
    const auto clients = static_cast<int>(partition.clients.size());
    if (world.rank() == 0 && world.size() > clients)
      log_warning(fmt::format(
          "mpirun -n {}: more ranks than the {} client{}: {} of them stay{} without a client and idle", world.size(),
          clients, clients == 1 ? "" : "s", world.size() - clients, world.size() - clients == 1 ? "s" : ""));
    return 0;
  });
  return {std::move(model), std::move(pairs), std::move(partition)};
}

DType weight_type(const RunOptions& options) { return options.precision == Precision::bf16 ? DType::bf16 : DType::f32; }

std::unique_ptr<Backend> make_backend(const Communicator& world, const RunOptions& options) {
  DeviceChoice choice;
  if (options.device != "cpu") {
    const CudaDevices here = cuda_devices();
    const Communicator node = world.node();
    std::int64_t lacking = here.devices.empty() ? 1 : 0;
    world.max(std::span(&lacking, 1));
    choice = on_all_ranks(world, [&] { return choose_device(options.device, here, node.rank(), lacking == 0); });
    if (!choice.line.empty()) log_info(choice.line);
    if (choice.cuda && node.rank() == 0 && node.size() > static_cast<int>(here.devices.size()))
      log_warning(fmt::format("{} ranks of this node share {} CUDA device{}", node.size(), here.devices.size(),
                              here.devices.size() == 1 ? "" : "s"));
  }
  if (choice.cuda) {
    // Where the backbone is bf16, clients' own fp32 products need not be finer than TF32.
    const bool half = options.precision == Precision::bf16;
    return make_cuda_backend({.device = *choice.cuda, .products = half ? ClientProducts::tf32 : ClientProducts::fp32});
  }
  if (options.precision == Precision::bf16 && !cpu_has_bf16())
    log_warning("--precision bf16: this processor has no bf16 arithmetic; fp32 would be faster");
  return make_cpu_backend({.num_threads = options.threads});
}

Backbone load_backbone(const Communicator& world, Backend& backend, const ModelFolder& model, DType dtype) {
  const Communicator node = world.node();
  Backbone backbone{NodeBuffer(node, weight_bytes(model.config(), dtype)), {}, {}};
  on_all_ranks(world, [&] {
    if (node.rank() == 0) load_weights(model, dtype, backbone.memory.bytes().data());
    return 0;
  });
  backbone.memory.fence();
  backbone.weights =
      place_weights(backend, model.config(), dtype, backbone.memory.bytes().data(), backbone.device_memory);
  return backbone;
}

namespace {

/// By client and split.
std::vector<std::array<double, 3>> packed_rows_of(const RunInput& input, const RunOptions& options) {
  const PackingOptions packing{options.adapter.reward_head, true};
  std::vector<std::array<double, 3>> rows;
  for (const ClientShare& client : input.partition.clients) {
    auto& of_client = rows.emplace_back();
    for (std::size_t s = 0; s < of_client.size(); ++s)
      for (PairId id : client.pairs[s]) of_client[s] += packed_rows(input.pairs.files[id.file], id.index, packing);
  }
  return rows;
}

/// By client, of a round, from the rows of all pairs.
std::vector<double> training_costs(const RunInput& input, const RunOptions& options, const FederatedMethod& method,
                                   std::span<const std::array<double, 3>> rows) {
  constexpr auto train = static_cast<std::size_t>(Split::train);
  const bool pooled = method.data_scope() == DataScope::pooled;
  std::vector<double> costs;
  double pool_rows = 0, pool_pairs = 0;
  for (std::size_t c = 0; c < rows.size(); ++c) {
    const auto train_pairs = static_cast<double>(input.partition.clients[c].pairs[train].size());
    pool_rows += rows[c][train];
    pool_pairs += train_pairs;
    // A train row costs a forward and a backward pass of about the same size; a personal LoRA is trained as long again.
    const int steps = options.steps * (options.adapter.personal_lora == PersonalLora::none ? 1 : 2) + options.refit;
    costs.push_back(train_pairs > 0 && !pooled ? 2.0 * steps * options.batch * rows[c][train] / train_pairs : 0);
  }
  if (pooled && pool_pairs > 0)
    costs[0] += 2.0 * options.steps * options.batch * static_cast<double>(costs.size()) * pool_rows / pool_pairs;
  return costs;
}

}  // namespace

std::vector<double> client_costs(const RunInput& input, const RunOptions& options, const FederatedMethod& method) {
  const std::vector<std::array<double, 3>> rows = packed_rows_of(input, options);
  const int points = is_evaluated_once(options, method, method.shared_groups().size()) ? 1 : 2;
  std::vector<double> costs = training_costs(input, options, method, rows);
  for (std::size_t c = 0; c < costs.size(); ++c)
    for (const Split split : parse_splits(options.eval_splits))
      costs[c] += points * rows[c][static_cast<std::size_t>(split)] / std::max(1, options.eval_every);
  return costs;
}

RunWork run_work(const RunInput& input, const RunOptions& options, const FederatedMethod& method,
                 std::size_t shared_size) {
  const std::vector<std::array<double, 3>> rows = packed_rows_of(input, options);
  const PlannedEvaluations planned = planned_evaluations(options, method, shared_size, input.partition);
  const std::vector<ClientShare>& clients = input.partition.clients;
  RunWork work{planned.rounds, planned.points, training_costs(input, options, method, rows), {}};
  const auto evaluated = [&](std::size_t client, std::size_t split, std::int64_t times) {
    const auto passes = static_cast<double>(times);
    return EvaluatedPairs{passes * static_cast<double>(clients[client].pairs[split].size()),
                          passes * rows[client][split]};
  };
  EvaluatedPairs tests;
  for (std::size_t c = 0; c < clients.size(); ++c) tests += evaluated(c, static_cast<std::size_t>(Split::test), 1);
  for (std::size_t c = 0; c < clients.size(); ++c) {
    if (clients[c].is_new) work.training[c] = 0;
    ClientEvaluations& client = work.evaluations.emplace_back();
    for (std::size_t s = 0; s < rows[c].size(); ++s) {
      client.start += evaluated(c, s, planned.own[c][s].start);
      client.rounds += evaluated(c, s, planned.own[c][s].rounds);
      client.end += evaluated(c, s, planned.own[c][s].end);
    }
    if (planned.crosses[c]) client.end += tests;
  }
  return work;
}

Operations count_operations(const ModelConfig& config, const ParameterLayout& layout, double rows, double targets,
                            double attended) {
  const auto d = static_cast<double>(config.hidden_size), v = static_cast<double>(config.vocab_size);
  const auto layers = static_cast<double>(config.num_layers);
  const bool through_backbone = layout.has(Group::lora_a) || layout.has(Group::lora_b);
  double lora = 0;
  for (const Parameter& p : layout.parameters())
    if (p.group == Group::lora_a || p.group == Group::lora_b) lora += static_cast<double>(p.rows * p.cols);
  const double attention = 4 * attended * static_cast<double>(config.num_heads * config.head_dim) * layers;
  const double head = 2 * targets * v * d;
  const double bottleneck = 4.0 * rows * layout.options().bottleneck * d;
  Operations count;
  count.forward = 2 * rows * (static_cast<double>(config.layer_parameters()) + lora) + attention + head + bottleneck;
  if (through_backbone)
    count.backward += 2 * rows * static_cast<double>(config.layer_parameters()) + 4 * rows * lora + 2 * attention;
  count.backward += head + 2 * bottleneck;
  if (layout.options().head == HeadKind::full) count.backward += head;
  if (layout.options().head == HeadKind::lowrank) {
    const double low_rank = 2 * targets * (v + d) * layout.options().head_rank;
    count.forward += low_rank;
    count.backward += 2 * low_rank;
  }
  return count;
}

Operations count_operations(const ModelConfig& config, const ParameterLayout& layout, const PackedBatch& batch) {
  double attended = 0;
  for (const Segment& s : batch.segments) {
    const double n = s.end - s.begin;
    attended += n * (s.context_end - s.context_begin) + n * (n + 1) / 2;
  }
  return count_operations(config, layout, batch.num_rows(), batch.num_targets(), attended);
}

std::map<std::string, std::string> environment_facts(const Communicator& world, const Backend& backend,
                                                     const RunOptions& options, const Placement& placement) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  char started[32] = "";
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", &utc);
  std::string ranks;
  for (int rank : placement.rank_of_client) ranks += (ranks.empty() ? "" : " ") + std::to_string(rank);
  return {{"program_version", FEDPDPO_VERSION},
          {"git_hash", FEDPDPO_GIT_HASH},
          {"hostname", host},
          {"num_ranks", std::to_string(world.size())},
          {"ranks_on_first_node", std::to_string(world.node().size())},
          {"threads", std::to_string(options.threads)},
          {"device", backend.name()},
          {"device_description", backend.description()},
          {"mpi", MpiSession::library_version()},
          {"compiler", __VERSION__},
          {"started", started},
          {"client_ranks", ranks},
          {"placement_imbalance", fmt::format("{:.4f}", placement.imbalance())}};
}

std::string version_line() { return fmt::format("fedpdpo {} ({})", FEDPDPO_VERSION, FEDPDPO_GIT_HASH); }

std::string bytes_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, units[unit]);
}

}  // namespace fedpdpo
