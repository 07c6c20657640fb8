// RoundTable: its columns, rows and way into the history; the names of splits.
#include <gtest/gtest.h>

#include <cmath>

#include "fedpdpo/fed/round_table.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

TEST(ParseSplits, KnowsTheThreeNames) {
  using Splits = std::vector<Split>;
  EXPECT_EQ(parse_splits("validation,test"), (Splits{Split::validation, Split::test}));
  EXPECT_EQ(parse_splits("test,train,test"), (Splits{Split::test, Split::train}));
  EXPECT_EQ(parse_splits("test"), Splits{Split::test});
  EXPECT_INPUT_ERROR(parse_splits("test,valid"),
                     "--eval-splits: expected a list of train, validation, test, found valid");
  for (const char* list : {"", "test,", ",test", "test train", "Test"})
    EXPECT_INPUT_ERROR(parse_splits(list), "--eval-splits: expected a list of train, validation, test");
}

Evaluation evaluation(double from) {
  Evaluation e;
  for (double Evaluation::*field :
       {&Evaluation::loss, &Evaluation::accuracy, &Evaluation::accuracy_implicit, &Evaluation::accuracy_explicit,
        &Evaluation::mean_margin, &Evaluation::mean_margin_implicit, &Evaluation::mean_margin_explicit,
        &Evaluation::log_prob_chosen, &Evaluation::log_prob_rejected, &Evaluation::kl_to_reference})
    e.*field = from++;
  return e;
}

constexpr const char* metrics[] = {"loss",          "accuracy",        "accuracy_implicit", "accuracy_explicit",
                                   "margin",        "margin_implicit", "margin_explicit",   "logp_chosen",
                                   "logp_rejected", "kl_to_reference"};
constexpr Split both[] = {Split::validation, Split::test};

TEST(RoundTable, HasAColumnForEveryMetric) {
  EXPECT_EQ(RoundTable({}).num_columns(), 14u);
  const RoundTable table(both);
  EXPECT_EQ(table.num_columns(), 2u * 2 * 10 + 14);
  const std::vector<double> row = table.empty_row();
  ASSERT_EQ(row.size(), table.num_columns());
  for (double x : row) EXPECT_TRUE(std::isnan(x));
  EXPECT_CONTRACT_VIOLATION(table.get(row, "train/after/loss"), "unknown metric train/after/loss");
}

TEST(RoundTable, EvaluationsGoToTheirSplitAndPoint) {
  const RoundTable table(both);
  std::vector<double> row = table.empty_row();
  table.set_evaluation(row, Split::test, Point::after, evaluation(10));
  table.set_evaluation(row, Split::validation, Point::before, evaluation(30));
  for (std::size_t i = 0; i < std::size(metrics); ++i) {
    const std::string metric = metrics[i];
    EXPECT_EQ(table.get(row, "test/after/" + metric), 10 + static_cast<double>(i));
    EXPECT_EQ(table.get(row, "validation/before/" + metric), 30 + static_cast<double>(i));
    EXPECT_TRUE(std::isnan(table.get(row, "test/before/" + metric)));
    EXPECT_TRUE(std::isnan(table.get(row, "validation/after/" + metric)));
  }
  table.copy_evaluation(row, Point::after, Point::before);
  EXPECT_EQ(table.get(row, "test/before/accuracy"), 11);
  EXPECT_TRUE(std::isnan(table.get(row, "validation/before/accuracy"))) << "copied from what was not there";
}

TEST(RoundTable, TrainingIsMeansAndSums) {
  const RoundTable table(both);
  std::vector<double> row = table.empty_row();
  RoundSums sums{12, 6, 8, 500, 4, 2, 10, true};
  table.set_training(row, sums, true);
  const std::pair<const char*, double> expected[] = {{"loss", 1.5},
                                                     {"accuracy", 0.75},
                                                     {"grad_norm_shared", 0.5},
                                                     {"grad_norm_private", 2.5},
                                                     {"tokens", 500},
                                                     {"pairs", 8},
                                                     {"steps", 4},
                                                     {"participated", 1},
                                                     {"left_out", 0},
                                                     {"bytes_up", 0},
                                                     {"bytes_down", 0},
                                                     {"group", -1}};
  for (const auto& [metric, value] : expected)
    EXPECT_DOUBLE_EQ(table.get(row, std::string("train/") + metric), value) << metric;
  sums.finite = false;
  table.set_training(row, sums, true);
  EXPECT_EQ(table.get(row, "train/left_out"), 1);
  table.set_training(row, {}, false);
  EXPECT_TRUE(std::isnan(table.get(row, "train/loss")));
  EXPECT_TRUE(std::isnan(table.get(row, "train/grad_norm_shared")));
  EXPECT_EQ(table.get(row, "train/participated"), 0);
  EXPECT_EQ(table.get(row, "train/pairs"), 0);
  EXPECT_TRUE(std::isnan(table.get(row, "train/update_norm"))) << "who did not take part has no update";
}

TEST(RoundTable, ExchangeIsWhatTravelled) {
  const RoundTable table(both);
  std::vector<double> row = table.empty_row();
  table.set_training(row, {}, true);
  table.set_exchange(row, 2, {.bytes_up = 64, .bytes_down = 32, .update_norm = 1.5, .compression_error = 0.25});
  const std::pair<const char*, double> expected[] = {
      {"group", 2}, {"bytes_up", 64}, {"bytes_down", 32}, {"update_norm", 1.5}, {"compression_error", 0.25}};
  for (const auto& [metric, value] : expected)
    EXPECT_EQ(table.get(row, std::string("train/") + metric), value) << metric;
  EXPECT_EQ(table.get(row, "train/participated"), 1);
}

TEST(RoundTable, DefinesASeriesAColumnTwice) {
  const RoundTable table(both);
  History history(3);
  table.define(history, 5);
  // The group is nothing to be averaged; the accuracy of each split and point has a worst decile and a spread beside
  // it.
  EXPECT_EQ(history.series().size(), 2 * table.num_columns() - 1 + 2 * 4);
  EXPECT_TRUE(history.series().contains("/clients/train/group"));
  EXPECT_FALSE(history.series().contains("/rounds/train/group"));
  for (const char* split : {"validation", "test"})
    for (const char* point : {"before", "after"})
      for (const char* suffix : {"worst_decile", "spread"})
        EXPECT_EQ(history.at(std::string("/rounds/") + split + "/" + point + "/accuracy_" + suffix).width, 1u);
  EXPECT_EQ(history.at("/clients/test/after/accuracy").width, 5u);
  EXPECT_EQ(history.at("/rounds/test/after/accuracy").width, 1u);
  for (const auto& [path, series] : history.series()) {
    EXPECT_FALSE(series.units.empty()) << path;
    EXPECT_FALSE(series.description.empty()) << path;
    EXPECT_EQ(series.values.size(), 4 * series.width) << path;
  }
}

/// Clients dealt to the ranks in turn: rank 0 gets everybody's rows, with means and sums over those that have a number.
TEST(Ranks, RecordGathersTheClientsRows) {
  const Communicator world = Communicator::world();
  const RoundTable table(both);
  constexpr int num_clients = 5;
  History history(2);
  table.define(history, num_clients);
  std::vector<int> clients;
  std::vector<std::vector<double>> rows;
  for (int c = world.rank(); c < num_clients - 1; c += world.size()) {  // client 4 is nobody's
    clients.push_back(c);
    rows.push_back(table.empty_row());
    table.set_evaluation(rows.back(), Split::test, Point::after, evaluation(c));
    const RoundSums sums{2.0 * c, 0, 2, 10, 1, 0, 0, true};
    table.set_training(rows.back(), c == 3 ? RoundSums{} : sums, c != 3);
    if (c != 3) table.set_exchange(rows.back(), c % 2, {8.0 + c, 4, 1.0 + c, 0.5});
  }
  std::vector<const std::vector<double>*> pointers;
  for (const auto& row : rows) pointers.push_back(&row);
  table.record(world, clients, pointers, 1, num_clients, world.rank() == 0 ? &history : nullptr);
  if (world.rank() != 0) return;
  for (int c = 0; c < 4; ++c) {
    const auto at = static_cast<std::size_t>(c);
    EXPECT_EQ(history.at("/clients/test/after/loss").row(1)[at], c);
    EXPECT_EQ(history.at("/clients/test/after/kl_to_reference").row(1)[at], c + 9);
  }
  EXPECT_TRUE(std::isnan(history.at("/clients/test/after/loss").row(1)[4]));
  EXPECT_TRUE(std::isnan(history.at("/clients/test/after/loss").row(0)[0])) << "another round was written";
  EXPECT_DOUBLE_EQ(history.at("/rounds/test/after/loss").row(1)[0], (0 + 1 + 2 + 3) / 4.0);
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/loss").row(1)[0], (0 + 1 + 2) / 3.0) << "client 3 took no part";
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/pairs").row(1)[0], 6);
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/participated").row(1)[0], 3);
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/bytes_up").row(1)[0], 8 + 9 + 10);
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/bytes_down").row(1)[0], 12);
  EXPECT_DOUBLE_EQ(history.at("/rounds/train/update_norm").row(1)[0], (1 + 2 + 3) / 3.0) << "client 3 sent nothing";
  EXPECT_DOUBLE_EQ(history.at("/clients/train/group").row(1)[1], 1);
  EXPECT_DOUBLE_EQ(history.at("/clients/train/group").row(1)[3], -1);
  // Accuracies 1, 2, 3, 4: a tenth of four clients is one; variance 5 / 3.
  EXPECT_DOUBLE_EQ(history.at("/rounds/test/after/accuracy_worst_decile").row(1)[0], 1);
  EXPECT_DOUBLE_EQ(history.at("/rounds/test/after/accuracy_spread").row(1)[0], std::sqrt(5.0 / 3));
  EXPECT_TRUE(std::isnan(history.at("/rounds/validation/before/accuracy_spread").row(1)[0]));
  EXPECT_TRUE(std::isnan(history.at("/rounds/validation/before/accuracy_worst_decile").row(1)[0]));
  EXPECT_TRUE(std::isnan(history.at("/rounds/validation/before/loss").row(1)[0]));
}

/// Accuracies (7 c mod 23) / 32 of 23 clients: the worst tenth are three, with 0, 1 and 2 of 32. Numbers 0 ... n - 1
/// have the sample variance n (n + 1) / 12.
TEST(RoundTable, WorstDecileAndSpread) {
  const int self[] = {Communicator::world().rank()};
  const Communicator alone = Communicator::world().subgroup(self, 9);
  const Split test[] = {Split::test};
  const RoundTable table(test);
  for (const int n : {23, 1}) {
    History history(1);
    table.define(history, n);
    std::vector<int> clients;
    std::vector<std::vector<double>> rows;
    std::vector<const std::vector<double>*> pointers;
    for (int c = 0; c < n; ++c) {
      clients.push_back(c);
      rows.push_back(table.empty_row());
      Evaluation e;
      e.accuracy = (7 * c % n) / 32.0;
      table.set_evaluation(rows.back(), Split::test, Point::after, e);
      table.set_training(rows.back(), {}, false);
    }
    for (const auto& row : rows) pointers.push_back(&row);
    table.record(alone, clients, pointers, 0, n, &history);
    const auto at = [&](const std::string& path) { return history.at("/rounds/test/after/" + path).row(0)[0]; };
    EXPECT_DOUBLE_EQ(at("accuracy_worst_decile"), n == 1 ? 0 : 1 / 32.0);
    EXPECT_NEAR(at("accuracy_spread"), n == 1 ? 0 : std::sqrt(23 * 24 / 12.0) / 32, 1e-15);
  }
}

}  // namespace
}  // namespace fedpdpo::test
