// A run's options as text, by the long names of the command line. Numbers in the shortest form that reads back as the
// same value.
#include "fedpdpo/fed/options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "fedpdpo/fed/option_names.hpp"

namespace fedpdpo {
namespace {

std::string joined(const std::vector<std::filesystem::path>& paths) {
  std::string text;
  for (const std::filesystem::path& path : paths) {
    if (!text.empty()) text += ' ';
    text += path.string();
  }
  return text;
}

class Description {
 public:
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void number(const char* option, Number value) { text_[option] = fmt::format("{}", value); }
  void number_or_auto(const char* option, int value) { text_[option] = value > 0 ? fmt::format("{}", value) : "auto"; }
  void text(const char* option, std::string value) { text_[option] = std::move(value); }
  template <class Enum, std::size_t N>
  void word(const char* option, const std::array<NamedValue<Enum>, N>& names, Enum value) {
    text_[option] = name_of(names, value);
  }
  std::map<std::string, std::string> take() { return std::move(text_); }

 private:
  std::map<std::string, std::string> text_;
};

void describe_federation(const RunOptions& options, Description& out) {
  out.text("model", options.model.string());
  out.text("data", joined(options.data));
  out.text("method", options.method);
  const PartitionOptions& partition = options.partition;
  out.number("clients", partition.num_clients);
  out.number("alpha", partition.alpha);
  out.word("partition", partition_kind_names, partition.kind);
  out.number("flip-clients", partition.flip_clients);
  out.number("min-train", partition.min_train);
  out.number("max-train", partition.max_train);
  out.number("max-validation", partition.max_validation);
  out.number("max-test", partition.max_test);
  out.number("seed", partition.seed);
  out.number("rounds", options.rounds);
  out.number("steps", options.steps);
  out.number("batch", options.batch);
  out.number("participation", options.participation);
  std::string groups(name_of(group_kind_names, options.groups));
  if (options.groups == GroupKind::clusters) groups += fmt::format(":{}", options.num_clusters);
  out.text("groups", groups);
  out.text("cluster-labels", fmt::format("{}", fmt::join(options.cluster_labels, ",")));
  out.number("agreement-errors", options.agreement_errors);
  out.word("reduce", reduction_names, options.reduce);
  out.word("reduce-route", reduction_route_names, options.reduce_route);
  out.number("ranks-per-node", options.ranks_per_node);
  out.word("aggregation", aggregation_names, options.aggregation);
  out.number("prox-mu", options.prox_mu);
  out.number("server-lr", options.server_lr);
  out.number("server-momentum", options.server_momentum);
  out.number("server-beta2", options.server_beta2);
  out.number("server-tau", options.server_tau);
  out.number("dp-clip", options.privacy.clip);
  out.number("dp-noise", options.privacy.noise_multiplier);
  out.number("dp-delta", options.privacy.delta);
  out.word("compress", compression_names, options.compression.kind);
  out.number("compress-share", options.compression.topk_share);
  out.word("error-feedback", switch_names, options.compression.error_feedback);
  out.number("refit", options.refit);
  out.number("new-clients", partition.num_new_clients);
  out.number("new-client-steps", options.new_client_steps);
}

void describe_modules(const RunOptions& options, Description& out) {
  const AdapterOptions& adapter = options.adapter;
  out.number("lora-rank", adapter.lora_rank);
  out.number("lora-alpha", adapter.lora_alpha);
  out.text("lora-targets", adapter.lora_targets);
  out.number("lora-dropout", adapter.lora_dropout);
  out.number("lora-first-layer", adapter.lora_first_layer);
  out.text("lora-ranks", fmt::format("{}", fmt::join(options.lora_ranks, ",")));
  out.word("personal-lora", personal_lora_names, adapter.personal_lora);
  out.number("personal-prox", options.personal_prox);
  out.number("personal-mix", options.personal_mix);
  out.number("personal-samples", options.personal_samples);
  out.word("head", head_kind_names, adapter.head);
  out.number("head-rank", adapter.head_rank);
  out.number("bottleneck", adapter.bottleneck);
  out.word("bottleneck-kind", bottleneck_kind_names, adapter.bottleneck_kind);
  out.word("reward-head", switch_names, adapter.reward_head);
  out.word("reward-pool", reward_pool_names, adapter.reward_pool);
  out.word("reward-gradient", reward_gradient_names, adapter.reward_gradient);
}

void describe_training(const RunOptions& options, Description& out) {
  out.text("loss", options.loss.kind);
  out.number("beta", options.loss.beta);
  out.number("lambda", options.loss.lambda);
  out.number("mu", options.loss.mu);
  out.number("label-smoothing", options.loss.label_smoothing);
  out.number("simpo-gamma", options.loss.simpo_gamma);
  out.number("kto-chosen-weight", options.loss.kto_chosen_weight);
  out.number("kto-rejected-weight", options.loss.kto_rejected_weight);
  out.word("reference-free", switch_names, options.loss.reference_free);
  out.word("length-normalize", switch_names, options.loss.length_normalize);
  const OptimizerOptions& optimizer = options.optimizer;
  out.number("lr-shared", optimizer.lr_shared);
  out.number("lr-private", optimizer.lr_private);
  out.number("weight-decay", optimizer.weight_decay);
  out.number("adam-beta1", optimizer.beta1);
  out.number("adam-beta2", optimizer.beta2);
  out.number("adam-epsilon", optimizer.epsilon);
  out.number("clip", optimizer.clip);
  out.word("lr-schedule", rate_schedule_names, optimizer.schedule);
  out.number("warmup-rounds", optimizer.warmup_rounds);
  out.word("moments", moments_names, optimizer.moments);
  out.word("schedule", local_schedule_names, options.schedule);
  out.number("private-share", options.private_share);
}

void describe_execution(const RunOptions& options, Description& out) {
  out.text("device", options.device);
  out.word("precision", precision_names, options.precision);
  out.number("threads", options.threads);
  out.number_or_auto("cohort", options.cohort);
  out.number_or_auto("micro-rows", options.micro_rows);
  out.number_or_auto("resident", options.resident);
  out.word("graphs", graphs_names, options.graphs);
  out.number("eval-every", options.eval_every);
  const std::optional<int>& error_every = options.aggregation_error_every;
  out.text("aggregation-error-every", error_every ? fmt::format("{}", *error_every) : "auto");
  out.text("eval-splits", options.eval_splits);
  out.word("cross-eval", switch_names, options.cross_eval);
  out.number("checkpoint-every", options.checkpoint_every);
  out.text("checkpoint-dir", options.checkpoint_dir.string());
  out.word("resume", resume_names, options.resume);
  out.text("reference-cache", options.reference_cache.string());
  out.text("out", options.out.string());
  out.word("overwrite", switch_names, options.overwrite);
}

}  // namespace

bool is_execution_option(std::string_view name) {
  // The route of a fast sum changes its last bits, as the number of ranks does, which is free as well.
  static constexpr std::string_view names[] = {
      "out",   "overwrite", "resume", "checkpoint-every", "checkpoint-dir", "threads",     "reference-cache",
      "model", "data",      "config", "reduce-route",     "ranks-per-node", "aggregation", "resident"};
  return std::ranges::find(names, name) != std::end(names);
}

std::filesystem::path checkpoint_directory(const RunOptions& options) {
  if (!options.checkpoint_dir.empty()) return options.checkpoint_dir;
  std::filesystem::path path = options.out;
  return path.replace_extension("ckpt");
}

std::map<std::string, std::string> describe(const RunOptions& options) {
  Description out;
  describe_federation(options, out);
  describe_modules(options, out);
  describe_training(options, out);
  describe_execution(options, out);
  return out.take();
}

}  // namespace fedpdpo
