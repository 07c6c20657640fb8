// The layout of eval.h5: pairs (P), models (M), their scores (M, P) and the means of these by file and by label.
#include <cmath>

#include "eval_results.hpp"
#include "fedpdpo/fed/evaluation_metrics.hpp"
#include "fedpdpo/io/hdf5.hpp"

namespace fedpdpo {
namespace {

constexpr std::int64_t format_version = 1;

using Shape = std::vector<std::uint64_t>;

void write_pairs(Hdf5Writer& writer, const EvaluationSetting& setting) {
  std::vector<std::uint32_t> file;
  std::vector<std::uint64_t> pair;
  std::vector<std::int32_t> label;
  std::vector<double> chosen, rejected;
  for (const ClientPair& entry : setting.list) {
    const PairId id = entry.pair.id;
    file.push_back(id.file);
    pair.push_back(id.index);
    label.push_back(setting.pairs.label(id));
    chosen.push_back(entry.reference_chosen);
    rejected.push_back(entry.reference_rejected);
  }
  std::vector<std::string> domains;
  for (const PairFile& pairs : setting.pairs.files) domains.push_back(pairs.domain);
  writer.write_list("/pairs/file", file, "index", "pair file of each pair, in the order of --data");
  writer.write_list("/pairs/pair", pair, "index", "position of each pair in its file");
  writer.write_list("/pairs/label", label, "index", "category of each pair, in label_names");
  writer.write_list("/pairs/reference_chosen", chosen, "nat",
                    "log-probability of the chosen response under the reference, summed over its tokens");
  writer.write_list("/pairs/reference_rejected", rejected, "nat", "the same of the rejected response");
  writer.write_strings("/pairs/domain_names", domains, "name", "names of the domains, one a pair file");
  writer.write_strings("/pairs/label_names", setting.pairs.label_names, "name", "names of the categories");
}

void write_models(Hdf5Writer& writer, const std::vector<ScoredModel>& models) {
  std::vector<std::string> names, losses;
  std::vector<std::int32_t> client;
  std::vector<double> flipped, rewards, beta, lambda;
  for (const ScoredModel& model : models) {
    names.push_back(model.name);
    losses.push_back(model.loss.kind);
    client.push_back(model.client);
    flipped.push_back(model.flipped ? 1 : 0);
    rewards.push_back(model.has_rewards ? 1 : 0);
    beta.push_back(model.loss.beta);
    lambda.push_back(model.loss.lambda);
  }
  writer.write_strings("/models/names", names, "name", "names of the models");
  writer.write_strings("/models/loss", losses, "name", "loss that each model's margins are of");
  writer.write_list("/models/client", client, "index",
                    "client of the run that each model is of, -1: none's, or an adapter");
  writer.write_list("/models/flipped", flipped, "1", "1 for clients whose preferences were swapped in their run");
  writer.write_list("/models/reward_head", rewards, "1", "1 for models with a reward head");
  writer.write_list("/models/beta", beta, "1", "factor of the implicit margin");
  writer.write_list("/models/lambda", lambda, "1", "weight of the explicit margin");
}

void write_scores(Hdf5Writer& writer, const EvaluationSetting& setting, const std::vector<ScoredModel>& models) {
  const Shape shape{models.size(), setting.list.size()};
  const auto write = [&](const char* name, const char* units, const char* description, const auto& of) {
    std::vector<double> values;
    for (const ScoredModel& model : models) {
      const std::vector<double> row = of(model);
      values.insert(values.end(), row.begin(), row.end());
    }
    writer.write<double>(std::string("/scores/") + name, values, shape, units, description);
  };
  const auto field = [](double PairScores::*member) {
    return [member](const ScoredModel& model) {
      std::vector<double> row;
      for (const PairScores& scores : model.scores) row.push_back(scores.*member);
      return row;
    };
  };
  std::vector<Evaluation> evaluations;
  for (const ScoredModel& model : models) evaluations.push_back(evaluation_of(model.loss, model.scores));
  const auto margin = [&](std::vector<double> Evaluation::*member) {
    return [&, member](const ScoredModel& model) {
      return evaluations[static_cast<std::size_t>(&model - models.data())].*member;
    };
  };
  write("logp_chosen", "nat", "log-probability of the chosen response, summed over its tokens, by model and pair",
        field(&PairScores::log_prob_chosen));
  write("logp_rejected", "nat", "the same of the rejected response", field(&PairScores::log_prob_rejected));
  write("reward_chosen", "nat", "the reward head's output for the chosen response; 0 without one",
        field(&PairScores::reward_chosen));
  write("reward_rejected", "nat", "the same for the rejected response", field(&PairScores::reward_rejected));
  write("margin", "nat", "margin of chosen over rejected: implicit + lambda * explicit", margin(&Evaluation::margin));
  write("margin_implicit", "nat", "implicit margin: beta * difference of the log-ratios of policy and reference",
        margin(&Evaluation::margin_implicit));
  write("margin_explicit", "nat", "explicit margin: difference of the reward head's outputs, before lambda",
        margin(&Evaluation::margin_explicit));
}

/// Means of each model's pairs of file, or label, 0, 1, ...: (M, parts); NaN where there are no pairs.
void write_summaries(Hdf5Writer& writer, const EvaluationSetting& setting, const std::vector<ScoredModel>& models,
                     const std::string& group, std::size_t parts, const std::function<std::size_t(PairId)>& part_of) {
  std::vector<Summary> all;
  for (const ScoredModel& model : models)
    for (std::size_t part = 0; part < parts; ++part)
      all.push_back(summarize(model, setting, [&](PairId id) { return part_of(id) == part; }));
  const Shape shape{models.size(), parts};
  const auto write = [&](const std::string& name, const char* units, const std::string& description, const auto& of) {
    std::vector<double> values;
    for (const Summary& summary : all) values.push_back(summary.num_pairs > 0 ? of(summary) : std::nan(""));
    writer.write<double>(group + "/" + name, values, shape, units, description);
  };
  for (const EvaluationMetric& metric : evaluation_metrics)
    write(metric.name, metric.units, metric.description, [&](const Summary& s) { return s.evaluation.*metric.value; });
  write("accuracy_likelihood", "1",
        "share of pairs whose chosen response is the more probable one (a tie counts one half)",
        [](const Summary& s) { return s.accuracy_likelihood; });
  write("pairs", "pairs", "number of pairs", [](const Summary& s) { return static_cast<double>(s.num_pairs); });
}

}  // namespace

void write_evaluation_file(const std::filesystem::path& path, const EvaluationSetting& setting,
                           const std::vector<ScoredModel>& models,
                           const std::map<std::string, std::string>& environment) {
  Hdf5Writer writer;
  writer.attribute<std::string>("/", "format", "fedpdpo-eval");
  writer.attribute<std::int64_t>("/", "version", format_version);
  writer.group("/config");
  writer.attribute<std::string>("/config", "command_line", setting.line.text);
  writer.attribute<std::string>("/config", "split", split_names[static_cast<std::size_t>(setting.line.saved.split)]);
  writer.attributes("/environment", environment);
  write_pairs(writer, setting);
  write_models(writer, models);
  write_scores(writer, setting, models);
  write_summaries(writer, setting, models, "/files", setting.pairs.files.size(), [](PairId id) { return id.file; });
  write_summaries(writer, setting, models, "/labels", setting.pairs.label_names.size(),
                  [&](PairId id) { return static_cast<std::size_t>(setting.pairs.label(id)); });
  writer.save(path);
}

}  // namespace fedpdpo
