// Series of a run.
#include <gtest/gtest.h>

#include <cmath>

#include "fedpdpo/record/history.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

TEST(History, SeriesStartAsNaNOfTheirShape) {
  History history(3);
  EXPECT_EQ(history.num_rows(), 4u);
  const Series& scalar = history.define("/rounds/loss", 1, "nat", "mean loss");
  const Series& by_client = history.define("/clients/loss", 5, "nat", "loss");
  EXPECT_EQ(scalar.values.size(), 4u);
  EXPECT_EQ(by_client.values.size(), 20u);
  for (const double value : by_client.values) EXPECT_TRUE(std::isnan(value));
  EXPECT_EQ(by_client.units, "nat");
  EXPECT_EQ(by_client.description, "loss");
}

TEST(History, RowsAreViewsIntoTheValues) {
  History history(2);
  Series& series = history.define("/clients/loss", 3, "nat", "loss");
  ASSERT_EQ(series.row(1).size(), 3u);
  series.row(1)[2] = 7;
  EXPECT_EQ(series.values[5], 7);
  EXPECT_EQ(std::as_const(series).row(1)[2], 7);
  EXPECT_TRUE(std::isnan(series.row(2)[0]));
}

TEST(History, DefiningAgainGivesTheSameSeries) {
  History history(1);
  Series& first = history.define("/rounds/loss", 1, "nat", "mean loss");
  first.row(0)[0] = 3;
  for (int i = 0; i < 100; ++i) history.define("/rounds/other-" + std::to_string(i), 1, "1", "more");
  EXPECT_EQ(&history.define("/rounds/loss", 1, "changed", "changed"), &first);
  EXPECT_EQ(first.row(0)[0], 3);
  EXPECT_EQ(first.units, "nat");
  EXPECT_EQ(&history.at("/rounds/loss"), &first);
  EXPECT_EQ(history.series().size(), 101u);
}

TEST(History, ContradictionsAreContractViolations) {
  History history(1);
  history.define("/rounds/loss", 1, "nat", "mean loss");
  EXPECT_CONTRACT_VIOLATION(history.define("/rounds/loss", 2, "nat", "mean loss"), "another width");
  EXPECT_CONTRACT_VIOLATION(history.define("rounds/loss", 1, "nat", "x"), "begins with");
  EXPECT_CONTRACT_VIOLATION(history.define("/rounds/x", 0, "nat", "x"), "width");
  EXPECT_CONTRACT_VIOLATION(history.at("/rounds/absent"), "/rounds/absent");
}

}  // namespace
}  // namespace fedpdpo
