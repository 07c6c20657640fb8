// fedpdpo eval: a base model, a checkpoint's models or a PEFT adapter on preference pairs, by the run's own policy.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "command_line_parts.hpp"
#include "eval_results.hpp"
#include "exported_folder.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/cohort.hpp"
#include "fedpdpo/fed/model_scores.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "fedpdpo/model/private_modules.hpp"
#include "saved_models.hpp"

namespace fedpdpo {
namespace {

/// A model to be scored, read when its turn comes: there may be many, with a head each.
struct Candidate {
  ScoredModel facts;
  std::function<TrainedModel()> read;
};

/// What there is to score, and the options that it was made with.
struct Candidates {
  RunOptions options;  ///< with what was given on the command line
  std::vector<Candidate> models;
  std::unique_ptr<SavedFederation> federation;  ///< of --checkpoint; the models' readers use it
};

RunOptions with_overrides(const CommandLine& line, RunOptions options) {
  CommandLine own;
  own.command = Command::run;
  own.run = std::move(options);
  apply_options(own, line.saved.overrides, "eval");
  return own.run;
}

LossOptions loss_of(const RunOptions& options, bool has_rewards) {
  LossOptions loss = options.loss;
  if (!has_rewards) loss.lambda = loss.mu = 0;
  return loss;
}

/// What export noted beside a model, as options.
RunOptions noted_options(const std::filesystem::path& folder, const nlohmann::json& about) {
  const std::string place = (folder / modules_config_name).string();
  std::map<std::string, std::string> texts;
  const nlohmann::json loss = about.value("loss", nlohmann::json::object());
  for (const auto& [name, value] : loss.items())
    if (value.is_string()) texts[name] = value.get<std::string>();
  if (const auto precision = about.find("precision"); precision != about.end() && precision->is_string())
    texts["precision"] = precision->get<std::string>();
  CommandLine line;
  line.command = Command::run;
  apply_options(line, texts, place);
  return line.run;
}

void add_checkpoint(const Communicator& world, const CommandLine& line, const CheckpointReader& reader,
                    const ModelFolder& base, Candidates& candidates) {
  const std::string hash =
      world.broadcast(on_all_ranks(world, [&] { return world.rank() == 0 ? base.content_hash() : std::string(); }), 0);
  on_all_ranks(world, [&] {
    require_base(reader, base, hash);
    candidates.federation = std::make_unique<SavedFederation>(reader, run_options_of(reader), base.config());
    const SavedFederation& federation = *candidates.federation;
    candidates.options = with_overrides(line, federation.options());
    const bool rewards = federation.options().adapter.reward_head;
    for (const int client : selected_clients(federation, line.saved))
      candidates.models.push_back({{fmt::format("client {}", client), client, federation.is_flipped(client), rewards,
                                    loss_of(candidates.options, rewards)},
                                   [&federation, client] { return federation.client_model(client); }});
    if (line.saved.client != "shared") return 0;
    for (int group = 0; group < federation.num_groups(); ++group) {
      const bool shared_rewards = federation.shared_model(group).options.reward_head;
      candidates.models.push_back(
          {{fmt::format("shared {}", group), -1, false, shared_rewards, loss_of(candidates.options, shared_rewards)},
           [&federation, group] { return federation.shared_model(group); }});
    }
    return 0;
  });
}

void warn_of_another_base(const std::filesystem::path& folder, const nlohmann::json& about, const ModelFolder& base) {
  const nlohmann::json noted = about.value("base", nlohmann::json::object());
  const std::string expected = json_optional<std::string>(noted, "sha256", folder / modules_config_name).value_or("");
  if (!expected.empty() && expected != base.content_hash())
    log_warning(
        fmt::format("{}: made on another model than {}, by its content", folder.string(), base.path().string()));
}

/// An adapter, with what export put beside it.
void add_adapter(const Communicator& world, const CommandLine& line, const ModelFolder& base, Candidates& candidates) {
  const std::filesystem::path& folder = line.saved.adapter;
  TrainedModel model = read_peft_adapter(folder, base);
  const auto about = add_private_modules(folder, base.config(), model);
  if (about && world.rank() == 0) warn_of_another_base(folder, *about, base);
  candidates.options = with_overrides(line, about ? noted_options(folder, *about) : RunOptions{});
  const bool rewards = model.options.reward_head;
  candidates.models.push_back({{"adapter", -1, false, rewards, loss_of(candidates.options, rewards)},
                               [model = std::move(model)] { return model; }});
}

/// Margins of a model that LoRA was merged into are held against what it was made from, as its run did. Nothing is
/// returned where --reference names it, or where the model is the base of others, which began from it as it is.
std::optional<std::filesystem::path> noted_reference(const Communicator& world, const CommandLine& line,
                                                     const ExportedOrigin& origin) {
  if (!origin.merged || !line.saved.reference.empty()) return std::nullopt;
  if (!line.saved.adapter.empty() || !line.saved.checkpoint.empty()) return std::nullopt;
  if (world.rank() == 0) require_base_of_merged(origin);
  log_info(fmt::format("margins are against {}, which {} was merged from", origin.base_path, line.run.model.string()));
  return origin.base_path;
}

TrainedModel bare_model() {
  TrainedModel model;
  model.options.lora_rank = 0;
  return model;
}

/// The pairs of the split, file after file, in their files' order, and as a partition of one client for the reference.
Partition pairs_of_split(const PairSet& pairs, Split split) {
  Partition partition;
  auto& list = partition.clients.emplace_back().pairs[static_cast<std::size_t>(split)];
  for (std::uint32_t f = 0; f < pairs.files.size(); ++f)
    for (std::uint32_t i = 0; i < pairs.files[f].size(); ++i)
      if (pairs.files[f].split[i] == split) list.push_back({f, i});
  return partition;
}

ReferenceLogProbs reference_of(const Communicator& world, Backend& backend, const ModelFolder& model,
                               const Weights& weights, const PairSet& pairs, const Partition& partition,
                               const RunOptions& options) {
  ReferenceRequest request{
      {}, backend.name() + (options.precision == Precision::bf16 ? "-bf16" : "-fp32"), options.reference_cache};
  request.model_hash =
      world.broadcast(on_all_ranks(world, [&] { return world.rank() == 0 ? model.content_hash() : std::string(); }), 0);
  ReferenceReport report;
  return reference_log_probs(world, backend, model.config(), weights, pairs, partition, request, report);
}

std::vector<PairScores> score_by_file(const ScoringInput& input, const TrainedModel& model,
                                      std::span<const ClientPair> list) {
  std::vector<PairScores> all;
  for (std::size_t begin = 0; begin < list.size();) {
    std::size_t end = begin;
    while (end < list.size() && list[end].pair.id.file == list[begin].pair.id.file) ++end;
    const std::vector<PairScores> part = score_model(input, model, list.subspan(begin, end - begin));
    all.insert(all.end(), part.begin(), part.end());
    begin = end;
  }
  return all;
}

}  // namespace

int evaluate_command(const Communicator& world, const CommandLine& line) {
  const bool prints_json = line.saved.json == "-";
  on_all_ranks(world, [&] {
    if (world.rank() == 0 && !line.run.out.empty()) require_output_file(line.run);
    if (world.rank() == 0 && !line.saved.json.empty() && !prints_json) require_writable(line.saved.json, "--json");
    return 0;
  });
  std::optional<CheckpointReader> checkpoint;
  if (!line.saved.checkpoint.empty()) checkpoint = open_checkpoint(world, line.saved);
  const ModelFolder model = on_all_ranks(
      world, [&] { return ModelFolder(checkpoint ? base_of(*checkpoint, line.run.model) : line.run.model); });
  const PairSet pairs = read_pairs(world, line.run.data);
  on_all_ranks(world, [&] {
    require_fitting(pairs, model);
    return 0;
  });

  Candidates candidates;
  candidates.options = with_overrides(line, RunOptions{});
  TrainedModel base = bare_model();
  ScoredModel base_facts{"base", -1, false, false, {}};
  std::filesystem::path reference_folder = line.saved.reference;
  on_all_ranks(world, [&] {
    if (const auto about = add_private_modules(model.path(), model.config(), base)) {
      candidates.options = with_overrides(line, noted_options(model.path(), *about));
      if (has_private_modules(base)) log_info(fmt::format("the base model has {}", modules_weights_name));
      const ExportedOrigin origin = exported_origin(model.path(), *about);
      if (origin.merged && !origin.name().empty()) {
        base_facts.name = "merged " + origin.name();
        base_facts.client = origin.client.value_or(-1);
        base_facts.flipped = origin.preferences_swapped;
      }
      if (const auto noted = noted_reference(world, line, origin)) reference_folder = *noted;
    }
    base_facts.has_rewards = base.options.reward_head;
    if (!line.saved.adapter.empty()) add_adapter(world, line, model, candidates);
    return 0;
  });
  if (checkpoint) add_checkpoint(world, line, *checkpoint, model, candidates);
  base_facts.loss = loss_of(candidates.options, base_facts.has_rewards);
  candidates.models.insert(candidates.models.begin(), {base_facts, [&] { return base; }});

  RunOptions execution = line.run;
  execution.precision = candidates.options.precision;
  const Partition partition = pairs_of_split(pairs, line.saved.split);
  on_all_ranks(world, [&] {
    if (partition.clients[0].pairs[static_cast<std::size_t>(line.saved.split)].empty())
      throw InputError("", "--data",
                       fmt::format("pairs of the split {}", split_names[static_cast<std::size_t>(line.saved.split)]),
                       "none");
    return 0;
  });
  const std::unique_ptr<Backend> backend = make_backend(world, execution);
  std::optional<ReferenceLogProbs> reference;
  if (!reference_folder.empty()) {
    const ModelFolder other = on_all_ranks(world, [&] {
      ModelFolder folder(reference_folder);
      require_fitting(pairs, folder);
      return folder;
    });
    const Backbone backbone = load_backbone(world, *backend, other, weight_type(execution));
    reference = reference_of(world, *backend, other, backbone.weights, pairs, partition, execution);
  }
  const Backbone backbone = load_backbone(world, *backend, model, weight_type(execution));
  if (!reference) reference = reference_of(world, *backend, model, backbone.weights, pairs, partition, execution);
  const std::vector<ClientPair> list = client_data(partition, 0, *reference).of(line.saved.split);
  const int micro_rows = execution.micro_rows > 0 ? execution.micro_rows : default_micro_rows(*backend);
  const ScoringInput input{world, *backend, model.config(), backbone.weights, pairs, micro_rows};
  std::vector<ScoredModel> scored;
  for (const Candidate& candidate : candidates.models) {
    const TrainedModel trained = on_all_ranks(world, [&] { return candidate.read(); });
    scored.push_back(candidate.facts);
    scored.back().scores = score_by_file(input, trained, list);
  }
  if (world.rank() != 0) return 0;

  const EvaluationSetting setting{line, pairs, list};
  if (!line.run.out.empty())
    write_evaluation_file(
        line.run.out, setting, scored,
        {{"program", version_line()}, {"num_ranks", std::to_string(world.size())}, {"device", backend->description()}});
  const std::string figures = line.saved.json.empty() ? "" : evaluation_json(setting, scored);
  if (!figures.empty() && !prints_json) write_file_atomically(line.saved.json, figures);
  fmt::print("{}", prints_json ? figures : evaluation_table(setting, scored));
  return 0;
}

}  // namespace fedpdpo
