// The figures of `eval`, for people and for programs.
#include "eval_results.hpp"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "fedpdpo/fed/evaluation_metrics.hpp"
#include "fedpdpo/fed/option_names.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

json figures(const Summary& summary) {
  json result{{"pairs", summary.num_pairs}};
  for (const EvaluationMetric& metric : evaluation_metrics) result[metric.name] = summary.evaluation.*metric.value;
  result["accuracy_likelihood"] = summary.accuracy_likelihood;
  return result;
}

std::string shown_name(const ScoredModel& model) { return model.name + (model.flipped ? "*" : ""); }

std::string table_line(std::size_t width, const std::string& part, const ScoredModel& model, const Summary& s) {
  const Evaluation& e = s.evaluation;
  const std::string explicit_accuracy = model.has_rewards ? fmt::format("{:.4f}", e.accuracy_explicit) : "-";
  const std::string explicit_margin = model.has_rewards ? fmt::format("{:.4f}", e.mean_margin_explicit) : "-";
  return fmt::format(
      "{:<{}} {:<24} {:>6} {:>8.4f} {:>8.4f} {:>8} {:>10.4f} {:>9.4f} {:>9.4f} {:>9} {:>10.3f} {:>10.3f}\n",
      shown_name(model), width, part, s.num_pairs, e.accuracy, e.accuracy_implicit, explicit_accuracy,
      s.accuracy_likelihood, e.mean_margin, e.mean_margin_implicit, explicit_margin, e.log_prob_chosen,
      e.log_prob_rejected);
}

}  // namespace

Summary summarize(const ScoredModel& model, const EvaluationSetting& setting,
                  const std::function<bool(PairId)>& wanted) {
  Summary summary;
  std::vector<PairScores> scores;
  for (std::size_t i = 0; i < setting.list.size(); ++i) {
    if (!wanted(setting.list[i].pair.id)) continue;
    const PairScores& s = model.scores[i];
    scores.push_back(s);
    summary.accuracy_likelihood += s.log_prob_chosen > s.log_prob_rejected    ? 1
                                   : s.log_prob_chosen == s.log_prob_rejected ? 0.5
                                                                              : 0;
  }
  summary.num_pairs = scores.size();
  summary.evaluation = evaluation_of(model.loss, scores);
  summary.accuracy_likelihood /= static_cast<double>(std::max<std::size_t>(1, scores.size()));
  return summary;
}

std::string evaluation_table(const EvaluationSetting& setting, const std::vector<ScoredModel>& models) {
  std::size_t width = 12;
  for (const ScoredModel& model : models) width = std::max(width, shown_name(model).size());
  std::string text = fmt::format("{:<{}} {:<24} {:>6} {:>8} {:>8} {:>8} {:>10} {:>9} {:>9} {:>9} {:>10} {:>10}\n",
                                 "model", width, "pairs of", "number", "accuracy", "implicit", "explicit", "likelihood",
                                 "margin", "implicit", "explicit", "logp cho.", "logp rej.");
  for (const ScoredModel& model : models) {
    for (std::uint32_t file = 0; file < setting.pairs.files.size(); ++file)
      text += table_line(width, setting.pairs.files[file].domain, model,
                         summarize(model, setting, [=](PairId id) { return id.file == file; }));
    if (models.size() > 2 || &model == &models.front()) continue;
    const std::vector<std::string>& labels = setting.pairs.label_names;
    for (std::size_t l = 0; l < labels.size(); ++l) {
      const Summary summary =
          summarize(model, setting, [&](PairId id) { return std::cmp_equal(setting.pairs.label(id), l); });
      if (summary.num_pairs > 0) text += table_line(width, "  " + labels[l], model, summary);
    }
  }
  for (const ScoredModel& model : models) {
    if (!model.flipped) continue;
    return text + "* this client's preferences were swapped in its run; here pairs are as the files have them\n";
  }
  return text;
}

std::string evaluation_json(const EvaluationSetting& setting, const std::vector<ScoredModel>& models) {
  json result{{"format", "fedpdpo-eval"},
              {"version", 1},
              {"command_line", setting.line.text},
              {"split", split_names[static_cast<std::size_t>(setting.line.saved.split)]},
              {"models", json::array()}};
  for (const ScoredModel& model : models) {
    json files = json::array(), labels = json::object();
    for (std::uint32_t file = 0; file < setting.pairs.files.size(); ++file) {
      json entry = figures(summarize(model, setting, [=](PairId id) { return id.file == file; }));
      entry["domain"] = setting.pairs.files[file].domain;
      entry["path"] = setting.pairs.files[file].path.string();
      files.push_back(entry);
    }
    for (std::size_t l = 0; l < setting.pairs.label_names.size(); ++l) {
      const Summary summary =
          summarize(model, setting, [&](PairId id) { return std::cmp_equal(setting.pairs.label(id), l); });
      if (summary.num_pairs > 0) labels[setting.pairs.label_names[l]] = figures(summary);
    }
    result["models"].push_back({{"name", model.name},
                                {"client", model.client < 0 ? json() : json(model.client)},
                                {"preferences_swapped", model.flipped},
                                {"reward_head", model.has_rewards},
                                {"loss", model.loss.kind},
                                {"beta", model.loss.beta},
                                {"lambda", model.loss.lambda},
                                {"all", figures(summarize(model, setting, [](PairId) { return true; }))},
                                {"files", files},
                                {"labels", labels}});
  }
  return result.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace fedpdpo
