// fedpdpo bench: training steps of many clients at a model's shape, against the rate of matrix products measured in
// between; every number of clients with every number of pairs is a line.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>

#include "bench_report.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {
namespace {

std::array<int, 3> parse_tokens(const std::string& text) {
  std::array<int, 3> lengths{};
  const char* at = text.data();
  for (int& length : lengths) at = std::from_chars(at, text.data() + text.size(), length).ptr + 1;
  return lengths;  // the command line has checked it
}

/// InputError, naming --tokens, where the model cannot read a prompt with a response.
void require_fitting(std::array<int, 3> lengths, const ModelConfig& config, const std::string& text) {
  const std::int64_t longest = std::int64_t{lengths[0]} + std::max(lengths[1], lengths[2]);
  const auto found = fmt::format("{}, {} with the longer response", text, longest);
  if (longest > config.table_positions())
    throw InputError("", "--tokens", fmt::format("at most the model's {} positions", config.table_positions()), found);
  if (!config.attends_in_full(longest))
    throw InputError("", "--tokens",
                     fmt::format("at most the {} tokens of the model's sliding_window, which is not applied here",
                                 config.attention_window),
                     found);
}

/// Random pairs of the given lengths.
PairSet random_pairs(const ModelConfig& config, std::array<int, 3> lengths, int count) {
  PairFile file;
  file.domain = "bench";
  file.vocab_size = config.vocab_size;
  file.label_names = {"bench"};
  RandomStream stream({7, Purpose::bench, 0, 0, 0});
  RaggedTokens* parts[] = {&file.prompt, &file.chosen, &file.rejected};
  for (RaggedTokens* part : parts) part->offsets.push_back(0);
  for (int i = 0; i < count; ++i) {
    for (std::size_t p = 0; p < lengths.size(); ++p) {
      for (int t = 0; t < lengths[p]; ++t)
        parts[p]->tokens.push_back(
            static_cast<std::uint32_t>(stream.below(static_cast<std::uint64_t>(config.vocab_size))));
      // Nothing in common, so that every pair has the same rows.
      if (p == 2) {
        std::uint32_t& first = parts[2]->tokens[parts[2]->tokens.size() - static_cast<std::size_t>(lengths[2])];
        const std::uint32_t chosen = parts[1]->tokens[parts[1]->tokens.size() - static_cast<std::size_t>(lengths[1])];
        if (first == chosen) first = (first + 1) % static_cast<std::uint32_t>(config.vocab_size);
      }
      parts[p]->offsets.push_back(parts[p]->tokens.size());
    }
    file.label.push_back(0);
    file.split.push_back(Split::train);
  }
  std::vector<PairFile> files;
  files.push_back(std::move(file));
  return join_pair_files(std::move(files));
}

/// The backbone in the backend's memory, with what private heads start from on the host.
struct BenchBackbone {
  std::shared_ptr<void> memory, host;
  Weights weights;
};

BenchBackbone make_backbone(Backend& backend, const RunOptions& options, const ModelConfig& config) {
  const DType dtype = weight_type(options);
  const std::size_t bytes = weight_bytes(config, dtype);
  const bool on_host = backend.computes_on_host_memory();
  const auto on_the_host = [](std::size_t size) { return make_cpu_backend({})->allocate(size); };
  BenchBackbone b;
  if (options.model.empty() || on_host) b.memory = backend.allocate(bytes);
  if (options.model.empty()) {
    b.weights = random_weights(backend, config, dtype, 1, static_cast<std::byte*>(b.memory.get()));
    if (on_host) return b;
    HeadWeights& head = b.weights.head;
    const std::size_t head_bytes = static_cast<std::size_t>(head.size()) * dtype_size(dtype);
    b.host = on_the_host(head_bytes);
    backend.copy_to_host(b.host.get(), head.data, head_bytes);
    head.host = b.host.get();
    return b;
  }
  if (!on_host) b.host = on_the_host(bytes);
  auto* const memory = static_cast<std::byte*>((on_host ? b.memory : b.host).get());
  load_weights(ModelFolder(options.model), dtype, memory);
  b.weights = place_weights(backend, config, dtype, memory, on_host ? b.host : b.memory);
  return b;
}

}  // namespace

int bench_command(const Communicator& world, const CommandLine& line) {
  if (world.size() != 1) throw InputError("", "mpirun -n", "1 rank for bench", std::to_string(world.size()));
  const RunOptions& o = line.run;
  const BenchOptions& bench = line.bench;
  const bool named = o.model.empty();
  const bool prints_json = bench.json == "-";
  if (!bench.json.empty() && !prints_json) require_writable(bench.json, "--json");
  const ModelConfig config = named ? named_shape(bench.shape) : read_model_config(o.model);
  require_fitting(parse_tokens(bench.tokens), config, bench.tokens);
  const std::unique_ptr<FederatedMethod> method = find_method(o.method)->make(o);
  const ParameterLayout layout(config, o.adapter, method->shared_groups());
  const auto begin = std::chrono::steady_clock::now();
  OperationTimes counted;
  const std::unique_ptr<Backend> backend = bench.count ? make_counting_backend(counted) : make_backend(world, o);
  const BenchBackbone backbone = make_backbone(*backend, o, config);
  const int most = *std::max_element(bench.clients.begin(), bench.clients.end()) *
                   *std::max_element(bench.pairs.begin(), bench.pairs.end());
  const PairSet pairs = random_pairs(config, parse_tokens(bench.tokens), most);
  std::vector<float> start(layout.size());
  layout.initialize(1, 0, backbone.weights.head, start);

  const bool on_host = backend->computes_on_host_memory();
  const std::int64_t side = bench.ceiling > 0 ? bench.ceiling : (on_host ? 1024 : 8192);
  ProductRate ceiling = ProductRate::of_large(*backend, weight_type(o), side, side, side);
  backend->synchronize();
  const double setup = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();

  PackedBatch pair;
  const PairToPack first{{0, 0}, false};
  const MemberPairs alone{0, std::span(&first, 1)};
  pack(pairs, std::span(&alone, 1), {.keep_last_rows = layout.has(Group::reward), .share_prefix = true}, pair);
  const std::string type = o.precision == Precision::bf16 ? "bf16" : "fp32";
  const BenchFacts facts{line,
                         config,
                         layout,
                         *backend,
                         named ? bench.shape + " (random weights)" : o.model.filename().string(),
                         fmt::format("a {} product of {} x {} x {}", type, side, side, side),
                         pair.num_rows(),
                         pair.num_targets(),
                         setup};
  if (!prints_json) fmt::print("{}", bench_heading(facts));
  std::fflush(stdout);

  const BenchSetting setting{*backend,
                             config,
                             backbone.weights,
                             layout,
                             line,
                             pairs,
                             start,
                             pair.num_rows(),
                             count_operations(config, layout, pair)};
  std::vector<BenchResult> results;
  double best_rate = 0;
  for (int per_client : bench.pairs)
    for (int clients : bench.clients) {
      BenchResult& result =
          results.emplace_back(bench.count ? count_bench_case(setting, clients, per_client, counted)
                                           : run_bench_case(setting, clients, per_client, ceiling, best_rate));
      if (!result.seconds.empty()) best_rate = std::max(best_rate, result.rate());
      if (prints_json) continue;
      fmt::print("{}{}", bench_line(result), result.profile.empty() ? "" : bench_profile(result));
      std::fflush(stdout);
      if (!bench.json.empty()) write_file_atomically(bench.json, bench_json(facts, results));
    }
  if (prints_json) fmt::print("{}", bench_json(facts, results));
  const bool none_fits =
      std::all_of(results.begin(), results.end(), [](const BenchResult& r) { return r.does_not_fit; });
  if (none_fits) throw std::runtime_error("bench: no combination fits; the last one " + results.back().left_out);
  return 0;
}

}  // namespace fedpdpo
