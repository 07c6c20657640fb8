// fedpdpo bench: a training step at a model's shape, against the rate of plain matrix products measured in the same
// run, interleaved, medians.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

std::array<int, 3> parse_tokens(const std::string& text) {
  std::array<int, 3> lengths{};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto [next, error] = std::from_chars(at, end, lengths[i]);
    const bool separated = i + 1 < lengths.size() ? next < end && *next == '/' : next == end;
    if (error != std::errc() || lengths[i] < 1 || !separated)
      throw InputError("", "--tokens", "PROMPT/CHOSEN/REJECTED, e.g. 128/128/128", text);
    at = next + 1;
  }
  return lengths;
}

/// Random pairs of the given lengths, as one client's data.
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
      parts[p]->offsets.push_back(parts[p]->tokens.size());
    }
    file.label.push_back(0);
    file.split.push_back(Split::train);
  }
  std::vector<PairFile> files;
  files.push_back(std::move(file));
  return join_pair_files(std::move(files));
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

}  // namespace

int bench_command(const Communicator& world, const CommandLine& line) {
  if (world.size() != 1) throw InputError("", "mpirun -n", "1 rank for bench", std::to_string(world.size()));
  using Clock = std::chrono::steady_clock;
  const RunOptions& o = line.run;
  const std::array<int, 3> lengths = parse_tokens(line.bench.tokens);
  const bool named = o.model.empty();
  ModelConfig config = named ? named_shape(line.bench.shape) : read_model_config(o.model);
  const DType dtype = weight_type(o);
  const std::unique_ptr<Backend> backend = make_backend(world, o);
  const NodeBuffer memory(world.node(), weight_bytes(config, dtype));
  std::byte* bytes = memory.bytes().data();
  if (named) {
    random_weights(config, dtype, 1, bytes);
  } else {
    load_weights(ModelFolder(o.model), dtype, bytes);
  }
  std::shared_ptr<void> device_memory;
  const Weights weights = place_weights(*backend, config, dtype, bytes, device_memory);
  const std::unique_ptr<FederatedMethod> method = find_method(o.method)->make(o);
  const ParameterLayout layout(config, o.adapter, method->shared_groups());
  const PairSet pairs = random_pairs(config, lengths, line.bench.pairs);

  Policy policy(*backend, config, weights, layout);
  ClientBuffers buffers(*backend, layout, 1);
  ClientState state;
  ClientData data;
  std::vector<PairToPack> to_pack;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(line.bench.pairs); ++i) {
    data.pairs[0].push_back({{{0, i}, false}, -100, -100});
    to_pack.push_back({{0, i}, false});
  }
  std::vector<float> values(layout.size());
  layout.initialize(1, 0, weights.head, values);
  backend->copy_to_device(buffers.values(state).data, values.data(), values.size() * sizeof(float));
  TrainerOptions options{o.loss, o.optimizer, line.bench.pairs, o.micro_rows, 1, 1, o.graphs};
  LocalTrainer trainer(*backend, pairs, layout, policy, buffers, options, 1);
  const Member member{&state, &data, data.of(Split::train)};
  std::vector<Group> trainable;
  for (int g = 0; g < num_groups; ++g)
    if (layout.has(static_cast<Group>(g))) trainable.push_back(static_cast<Group>(g));

  PackedBatch batch;
  const MemberPairs all{0, to_pack};
  pack(pairs, std::span(&all, 1), policy.packing(), batch);
  const Operations operations = count_operations(config, layout, batch);
  std::vector<double> seconds, rates;
  trainer.step(std::span(&member, 1), 1, trainable, {});
  for (int i = 0; i < line.bench.repeats; ++i) {
    rates.push_back(measure_product_rate(*backend, config, weights, std::min(512, batch.num_rows()), 0.3));
    const auto start = Clock::now();
    trainer.step(std::span(&member, 1), 1, trainable, {});
    backend->synchronize();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  const double step = median(seconds), rate = median(rates);
  const double tokens = static_cast<double>(line.bench.pairs) * (lengths[0] + lengths[1] + lengths[2]);
  fmt::print("{} {} on {}, {} thread{}, {}\n", o.method, named ? line.bench.shape : o.model.filename().string(),
             backend->description(), o.threads, o.threads == 1 ? "" : "s",
             o.precision == Precision::bf16 ? "bf16" : "fp32");
  fmt::print(
      "step          {} pair{} of {} tokens (the prompt once), forward, backward and AdamW: {:.3f} s (median of {})\n",
      line.bench.pairs, line.bench.pairs == 1 ? "" : "s", line.bench.tokens, step, line.bench.repeats);
  fmt::print("tokens        {:.1f} tokens/s, {:.3f} pairs/s\n", tokens / step, line.bench.pairs / step);
  fmt::print("arithmetic    {:.1f} GFLOP a step ({:.1f} forward, {:.1f} backward), {:.1f} GFLOP/s\n",
             operations.total() / 1e9, operations.forward / 1e9, operations.backward / 1e9,
             operations.total() / step / 1e9);
  fmt::print("products      {:.1f} GFLOP/s for the layers' own matrix products alone, measured in between\n",
             rate / 1e9);
  fmt::print("share         {:.1f} % of the products' rate\n", 100 * operations.total() / step / rate);
  return 0;
}

}  // namespace fedpdpo
