// fedpdpo run.
#include <fmt/format.h>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/record/checkpoint.hpp"
#include "output_file.hpp"

namespace fedpdpo {
int run_command(const Communicator& world, const CommandLine& line) {
  const RunOptions& options = line.run;
  std::optional<FileLock> lock;
  on_all_ranks(world, [&] {
    if (world.rank() != 0) return 0;
    require_free_output(options);
    lock.emplace(options.out, "--out");
    return 0;
  });
  RunInput input = read_input(world, options);
  const MethodInfo& info = *find_method(options.method);
  const std::unique_ptr<FederatedMethod> method = info.make(options);
  // Before hours of reference log-probabilities: do the modules fit the model?
  ParameterLayout(input.model.config(), options.adapter, method->shared_groups());
  const std::string model_hash = world.broadcast(
      on_all_ranks(world, [&] { return world.rank() == 0 ? input.model.content_hash() : std::string(); }), 0);
  const std::string data_hash = content_hashes(input.pairs);
  std::int64_t complete = on_all_ranks(world, [&]() -> std::int64_t {
    return world.rank() == 0 && is_complete(options, model_hash, data_hash) ? 1 : 0;
  });
  world.broadcast(std::as_writable_bytes(std::span(&complete, 1)), 0);
  if (complete) {
    log_info(options.out.string() + " is complete: nothing to do");
    return 0;
  }
  const std::unique_ptr<Backend> backend = make_backend(world, options);
  const Backbone backbone = load_backbone(world, *backend, input.model, weight_type(options));
  const Placement placement = place_clients(client_costs(input, options, *method), world.size());
  log_info(fmt::format("{}: {} clients on {} rank{}, predicted imbalance {:.2f}; {} on {}", options.method,
                       input.partition.clients.size(), world.size(), world.size() == 1 ? "" : "s",
                       placement.imbalance(), options.model.filename().string(), backend->description()));

  ReferenceRequest request{
      {}, backend->name() + (options.precision == Precision::bf16 ? "-bf16" : "-fp32"), options.reference_cache};
  request.model_hash = model_hash;
  ReferenceReport report;
  const ReferenceLogProbs reference = reference_log_probs(world, *backend, input.model.config(), backbone.weights,
                                                          input.pairs, input.partition, request, report);
  log_info(fmt::format("reference log-probabilities: {} pairs computed, {} in the cache or not needed, {:.1f} s",
                       report.num_computed, report.num_reused, report.seconds));

  std::unique_ptr<RunFile> run_file;
  if (world.rank() == 0) {
    run_file = std::make_unique<RunFile>(options.out);
    run_file->write_config(describe(options), line.text);
    run_file->write_partition(input.pairs, input.partition);
  }
  auto facts = environment_facts(world, *backend, options, placement);
  Federation federation({world, *backend, input.model.config(), backbone.weights, input.pairs, input.partition,
                         placement, reference, options, *method, request.model_hash});
  facts.merge(federation.execution_facts());
  facts.merge(std::map<std::string, std::string>{{"model_sha256", model_hash}, {"data_sha256", data_hash}});
  if (run_file) run_file->write_environment(facts);
  // As late as this: what ends before leaves them as they were.
  if (world.rank() == 0 && options.overwrite && options.resume == Resume::none)
    remove_checkpoints(checkpoint_directory(options));
  federation.run(run_file.get());
  log_info("wrote " + options.out.string());
  return 0;
}

}  // namespace fedpdpo
