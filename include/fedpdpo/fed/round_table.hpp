// The numbers of one round: a row of metrics a client, made where the client lives, gathered on rank 0 and entered into
// the history as /clients/<path>[round, client] and, averaged or summed over the clients, /rounds/<path>[round].
#pragma once

#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/record/history.hpp"
#include "fedpdpo/train/evaluation.hpp"

namespace fedpdpo {

enum class Point : std::uint8_t { before, after };  ///< of evaluation: before or after the exchange

/// What a client sent and received in a round.
struct ExchangeFacts {
  double bytes_up = 0, bytes_down = 0;
  double update_norm = std::numeric_limits<double>::quiet_NaN();        ///< of y_i - x as sent, before clipping
  double compression_error = std::numeric_limits<double>::quiet_NaN();  ///< share of its norm that was left out
};

class RoundTable {
 public:
  /// `splits`: which are evaluated, e.g. {validation, test}.
  explicit RoundTable(std::span<const Split> splits);

  std::size_t num_columns() const { return columns_.size(); }
  /// A row of NaN.
  std::vector<double> empty_row() const;
  void set_evaluation(std::vector<double>& row, Split split, Point point, const Evaluation& evaluation) const;
  /// Where the model is the same at both points.
  void copy_evaluation(std::vector<double>& row, Point from, Point to) const;
  /// What local training did; a client that did not take part has participated = 0 and NaN losses.
  void set_training(std::vector<double>& row, const RoundSums& sums, bool participated) const;
  /// `group`: the client's aggregation group after the exchange.
  void set_exchange(std::vector<double>& row, int group, const ExchangeFacts& facts) const;
  /// The value of a column ("test/after/accuracy") in a row.
  double get(std::span<const double> row, std::string_view path) const;

  /// Defines the series in a history (rank 0).
  void define(History& history, int num_clients) const;
  /// Collective: rows of this rank's clients to rank 0's history.
  void record(const Communicator& world, std::span<const int> clients, std::span<const std::vector<double>* const> rows,
              int round, int num_clients, History* history) const;

 private:
  enum class Total : std::uint8_t { mean, sum, none };
  struct Column {
    std::string path, units, description;
    Total total;
  };
  std::size_t index(std::string_view path) const;
  void set(std::vector<double>& row, const std::string& path, double value) const { row[index(path)] = value; }

  std::vector<Column> columns_;
};

/// "validation,test" -> the splits; InputError for another name.
std::vector<Split> parse_splits(std::string_view list);

}  // namespace fedpdpo
