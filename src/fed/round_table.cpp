// Which metrics a round has, and how they reach the history.
#include "fedpdpo/fed/round_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/evaluation_metrics.hpp"
#include "keyed_rows.hpp"

namespace fedpdpo {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

const char* point_name(Point point) { return point == Point::before ? "before" : "after"; }

std::string path_of(Split split, Point point, const char* metric) {
  return fmt::format("{}/{}/{}", split_names[static_cast<std::size_t>(split)], point_name(point), metric);
}

/// The share of pairs that is right, of the whole margin: what tables are about.
bool is_accuracy(std::string_view path) { return path.ends_with("/accuracy") && !path.starts_with("train/"); }

double sum_of(std::span<const double> values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum;
}

double mean_of(std::span<const double> values) { return sum_of(values) / static_cast<double>(values.size()); }

/// NaN of nothing, 0 of one value.
double spread_of(std::span<const double> values) {
  if (values.empty()) return nan;
  if (values.size() == 1) return 0;
  const double mean = mean_of(values);
  double squared = 0;
  for (double value : values) squared += (value - mean) * (value - mean);
  return std::sqrt(squared / static_cast<double>(values.size() - 1));
}

}  // namespace

std::vector<Split> parse_splits(std::string_view list) {
  std::vector<Split> splits;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string_view name = list.substr(begin, end - begin);
    bool known = false;
    for (std::size_t s = 0; s < split_names.size(); ++s) {
      if (name != split_names[s]) continue;
      known = true;
      if (std::find(splits.begin(), splits.end(), static_cast<Split>(s)) == splits.end())
        splits.push_back(static_cast<Split>(s));
    }
    if (!known) throw InputError("", "--eval-splits", "a list of train, validation, test", name);
    begin = end + 1;
  }
  return splits;
}

RoundTable::RoundTable(std::span<const Split> splits) {
  for (Split split : splits)
    for (Point point : {Point::before, Point::after})
      for (const EvaluationMetric& metric : evaluation_metrics)
        columns_.push_back({path_of(split, point, metric.name), metric.units,
                            fmt::format("{} on the client's {} pairs, {}", metric.description,
                                        split_names[static_cast<std::size_t>(split)],
                                        point == Point::before
                                            ? "its model before the exchange, as local training left it if it took part"
                                            : "its model after the exchange"),
                            Total::mean});
  columns_.insert(
      columns_.end(),
      {{"train/loss", "nat", "mean loss over the pairs of the local steps", Total::mean},
       {"train/accuracy", "1", "share of those pairs with margin above 0, before each step", Total::mean},
       {"train/grad_norm_shared", "1", "mean norm of LoRA's gradient before clipping", Total::mean},
       {"train/grad_norm_private", "1", "mean norm of the private modules' gradient before clipping", Total::mean},
       {"train/tokens", "token", "tokens trained on, a pair's prompt counted once", Total::sum},
       {"train/pairs", "pair", "pairs trained on", Total::sum},
       {"train/steps", "step", "local steps", Total::sum},
       {"train/participated", "1", "1 where the client was sampled in the round", Total::sum},
       {"train/left_out", "1", "1 where its update was not finite and was left out", Total::sum},
       {"train/bytes_up", "byte", "sent by the client: its shared parameters, compressed where it is asked",
        Total::sum},
       {"train/bytes_down", "byte", "received by the client", Total::sum},
       {"train/update_norm", "1", "norm of the client's update y - x as sent, before clipping for privacy",
        Total::mean},
       {"train/compression_error", "1", "share of the update's norm that compression left out of the round",
        Total::mean},
       {"train/group", "index", "aggregation group of the client after the exchange", Total::none}});
}

std::size_t RoundTable::index(std::string_view path) const {
  for (std::size_t i = 0; i < columns_.size(); ++i)
    if (columns_[i].path == path) return i;
  contract_violation("metric", "unknown metric " + std::string(path), std::source_location::current());
}

std::vector<double> RoundTable::empty_row() const { return std::vector<double>(columns_.size(), nan); }

double RoundTable::get(std::span<const double> row, std::string_view path) const { return row[index(path)]; }

void RoundTable::set_evaluation(std::vector<double>& row, Split split, Point point,
                                const Evaluation& evaluation) const {
  for (const EvaluationMetric& metric : evaluation_metrics)
    set(row, path_of(split, point, metric.name), evaluation.*metric.value);
}

void RoundTable::copy_evaluation(std::vector<double>& row, Point from, Point to) const {
  for (std::size_t s = 0; s < split_names.size(); ++s) {
    if (columns_.end() == std::find_if(columns_.begin(), columns_.end(), [&](const Column& column) {
          return column.path == path_of(static_cast<Split>(s), from, "loss");
        }))
      continue;
    for (const EvaluationMetric& metric : evaluation_metrics)
      set(row, path_of(static_cast<Split>(s), to, metric.name),
          get(row, path_of(static_cast<Split>(s), from, metric.name)));
  }
}

void RoundTable::set_training(std::vector<double>& row, const RoundSums& sums, bool participated) const {
  const auto mean = [](double sum, double n) { return n > 0 ? sum / n : nan; };
  set(row, "train/loss", mean(sums.loss, sums.pairs));
  set(row, "train/accuracy", mean(sums.correct, sums.pairs));
  set(row, "train/grad_norm_shared", mean(sums.gradient_norm_shared, sums.steps));
  set(row, "train/grad_norm_private", mean(sums.gradient_norm_private, sums.steps));
  set(row, "train/tokens", sums.tokens);
  set(row, "train/pairs", sums.pairs);
  set(row, "train/steps", sums.steps);
  set(row, "train/participated", participated ? 1 : 0);
  set(row, "train/left_out", participated && !sums.finite ? 1 : 0);
  set_exchange(row, -1, {});
}

void RoundTable::set_exchange(std::vector<double>& row, int group, const ExchangeFacts& facts) const {
  set(row, "train/group", group);
  set(row, "train/bytes_up", facts.bytes_up);
  set(row, "train/bytes_down", facts.bytes_down);
  set(row, "train/update_norm", facts.update_norm);
  set(row, "train/compression_error", facts.compression_error);
}

void RoundTable::define(History& history, int num_clients) const {
  for (const Column& column : columns_) {
    history.define("/clients/" + column.path, static_cast<std::size_t>(num_clients), column.units, column.description);
    if (column.total == Total::none) continue;
    history.define(
        "/rounds/" + column.path, 1, column.units,
        fmt::format("{} over clients: {}", column.total == Total::mean ? "mean" : "sum", column.description));
    if (!is_accuracy(column.path)) continue;
    history.define("/rounds/" + column.path + "_worst_decile", 1, column.units,
                   "mean over the worst tenth of the clients (at least one): " + column.description);
    history.define("/rounds/" + column.path + "_spread", 1, column.units,
                   "sample standard deviation over clients: " + column.description);
  }
}

void RoundTable::record(const Communicator& world, std::span<const int> clients,
                        std::span<const std::vector<double>* const> rows, int round, int num_clients,
                        History* history) const {
  KeyedRows own;
  for (std::size_t i = 0; i < clients.size(); ++i) own.add(clients[i], *rows[i]);
  auto by_client = own.gather(world);
  if (!history) return;
  std::vector<std::vector<double>> table(static_cast<std::size_t>(num_clients), empty_row());
  for (auto& [client, row] : by_client) table[static_cast<std::size_t>(client)] = std::move(row);
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::span<double> row = history->at("/clients/" + columns_[c].path).row(static_cast<std::size_t>(round));
    std::vector<double> known;
    for (std::size_t k = 0; k < table.size(); ++k) {
      row[k] = table[k][c];
      if (!std::isnan(row[k])) known.push_back(row[k]);
    }
    if (columns_[c].total == Total::none) continue;
    const auto enter = [&](const char* suffix, double value) {
      history->at("/rounds/" + columns_[c].path + suffix).row(static_cast<std::size_t>(round))[0] = value;
    };
    const bool mean = columns_[c].total == Total::mean;
    enter("", known.empty() ? nan : (mean ? mean_of(known) : sum_of(known)));
    if (!is_accuracy(columns_[c].path)) continue;
    enter("_spread", spread_of(known));
    std::sort(known.begin(), known.end());
    enter("_worst_decile", known.empty() ? nan : mean_of(std::span(known).first((known.size() + 9) / 10)));
  }
}

}  // namespace fedpdpo
