// The choice of cohort, pass and residency, on made-up numbers.
#include <gtest/gtest.h>

#include "fedpdpo/fed/cohort.hpp"

namespace fedpdpo::test {
namespace {

constexpr std::size_t mega = 1'000'000;

/// 40 clients of 4 MB each and a gradient of 1 MB, steps of 1000 rows, 10 kB a row; an ample device.
CohortFacts ample() {
  CohortFacts facts;
  facts.num_clients = facts.num_trained = 40;
  facts.step_rows = 1000;
  facts.longest_pair = 500;
  facts.free_bytes = 10'000 * mega;
  facts.state_bytes = 4 * mega;
  facts.gradient_bytes = 1 * mega;
  facts.pass_bytes = [](std::int64_t rows) { return static_cast<std::size_t>(rows) * 10'000; };
  return facts;
}

/// A sixteenth beside what is predicted stays free.
std::size_t usable(const CohortFacts& facts) { return *facts.free_bytes * 16 / 17; }

TEST(Cohort, BalancedSizes) {
  EXPECT_EQ(balanced_size(10, 8), 5);
  EXPECT_EQ(balanced_size(10, 10), 10);
  EXPECT_EQ(balanced_size(10, 100), 10);
  EXPECT_EQ(balanced_size(10, 3), 3);
  EXPECT_EQ(balanced_size(13, 8), 7);
  EXPECT_EQ(balanced_size(1, 5), 1);
  EXPECT_EQ(balanced_size(7, 1), 1);
  // Taken again and again, as few cohorts as can be, none larger than asked for, sizes that differ by one at most.
  for (int clients = 1; clients <= 60; ++clients)
    for (int most = 1; most <= 61; ++most) {
      int cohorts = 0, largest = 0, smallest = clients;
      for (int left = clients; left > 0; ++cohorts) {
        const int size = balanced_size(left, most);
        largest = std::max(largest, size);
        smallest = std::min(smallest, size);
        left -= size;
      }
      ASSERT_EQ(cohorts, (clients + most - 1) / most) << clients << ' ' << most;
      ASSERT_LE(largest, most);
      ASSERT_LE(largest - smallest, 1) << clients << ' ' << most;
    }
}

/// 8192 rows are filled by 9 steps of 1000; of 40 clients 5 cohorts of 8. One pass holds their steps, and a quarter.
TEST(Cohort, GrowsUntilItsStepsFillAPass) {
  EXPECT_EQ(choose_cohort({}, ample()), (CohortChoice{8, 10'000, 40}));
  CohortFacts facts = ample();
  facts.num_trained = 9;
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{9, 11'250, 40}));
  facts.num_trained = 10;
  EXPECT_EQ(choose_cohort({}, facts).cohort, 5);
  facts = ample();
  facts.step_rows = 8192;  // a client fills it alone
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{1, 8192, 40}));
  facts.step_rows = 8191;
  EXPECT_EQ(choose_cohort({}, facts).cohort, 2);
  facts.step_rows = 1;  // more clients than there are would pay
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{40, 8192, 40}));
}

/// A given pass has as many members as have whole steps in it.
TEST(Cohort, SharesAGivenPass) {
  EXPECT_EQ(choose_cohort({.micro_rows = 4999}, ample()), (CohortChoice{4, 4999, 40}));
  EXPECT_EQ(choose_cohort({.micro_rows = 5000}, ample()), (CohortChoice{5, 5000, 40}));
  EXPECT_EQ(choose_cohort({.micro_rows = 999}, ample()), (CohortChoice{1, 999, 40}));
}

TEST(Cohort, OnTheHostClientsTrainOneByOne) {
  CohortFacts facts = ample();
  facts.free_bytes.reset();
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{1, 1024, 40}));
  EXPECT_EQ(choose_cohort({3, 77, 5}, facts), (CohortChoice{3, 77, 5}));
  EXPECT_EQ(choose_cohort({.resident = 50}, facts), (CohortChoice{1, 1024, 40}));
  EXPECT_EQ(smaller_budget({}, facts, {1, 1024, 40}), std::nullopt);
}

/// By hand: 8 members at the larger of 10000 / 8 and 500 rows each, a quarter more; state and gradient by slot.
TEST(Cohort, PredictsMemory) {
  CohortFacts facts = ample();
  EXPECT_EQ(predicted_bytes(facts, {8, 10'000, 40}), 40 * 5 * mega + 125 * mega);
  EXPECT_EQ(predicted_bytes(facts, {8, 2'000, 40}), 40 * 5 * mega + 50 * mega) << "members with a long pair each";
  EXPECT_EQ(predicted_bytes(facts, {1, 8'000, 40}), 40 * 4 * mega + 1 * mega + 100 * mega);
  EXPECT_EQ(predicted_bytes(facts, {1, 100, 3}), 3 * 4 * mega + 1 * mega + 6'250'000);
  facts.other_bytes = 7 * mega;
  EXPECT_EQ(predicted_bytes(facts, {1, 8'000, 40}), 40 * 4 * mega + 8 * mega + 100 * mega);
  EXPECT_EQ(later_bytes(facts, {1, 8'000, 40}), 107 * mega + 268 * mega / 16) << "all but state and gradients";
  facts.num_clients = 2;
  EXPECT_EQ(predicted_bytes(facts, {8, 80, 2}), 2 * 5 * mega + 7 * mega + 2 * 500 * 12'500);
}

/// 125 MB for the pass leave so many slots of 5 MB; below two cohorts of 8 the rest is swapped unannounced.
TEST(Cohort, SwapsWhatDoesNotFit) {
  CohortFacts facts = ample();
  const auto with = [&](std::size_t usable_bytes) {
    facts.free_bytes = usable_bytes / 16 * 17 + 17;
    return choose_cohort({}, facts);
  };
  EXPECT_EQ(with(325 * mega), (CohortChoice{8, 10'000, 40}));
  EXPECT_EQ(with(324 * mega), (CohortChoice{8, 10'000, 39}));
  EXPECT_EQ(with(206 * mega), (CohortChoice{8, 10'000, 16}));
  EXPECT_EQ(with(190 * mega), (CohortChoice{8, 10'000, 13}));
  EXPECT_EQ(with(166 * mega), (CohortChoice{8, 10'000, 8}));
  EXPECT_EQ(choose_cohort({.resident = 10}, facts).resident, 10) << "what is asked for is not doubted";
}

TEST(Cohort, ShrinksWithTheMemory) {
  CohortFacts facts = ample();
  CohortChoice last{100, 1 << 30, 100};
  std::size_t cohorts = 0;
  for (std::size_t free = 400 * mega; free >= 20 * mega; free -= 100'000) {
    facts.free_bytes = free;
    const CohortChoice choice = choose_cohort({}, facts);
    ASSERT_LE(predicted_bytes(facts, choice), usable(facts)) << free;
    ASSERT_LE(choice.cohort, last.cohort) << free;
    ASSERT_GE(choice.resident, choice.cohort);
    if (choice.cohort > 1) {
      ASSERT_GE(choice.micro_rows, choice.cohort * 1250) << "steps that do not fit into their pass";
    }
    cohorts += choice.cohort < last.cohort;
    last = choice;
  }
  EXPECT_EQ(cohorts, 8u) << "every size from 8 to 1 was met";
  EXPECT_EQ(last.cohort, 1);
  EXPECT_LT(last.micro_rows, 8192);
  facts.free_bytes = 0;  // the least, which the device will refuse
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{1, 256, 1}));
  EXPECT_EQ(choose_cohort({4, 0, 0}, facts), (CohortChoice{4, 5000, 4}));
  EXPECT_EQ(choose_cohort({4, 700, 6}, facts), (CohortChoice{4, 700, 6}));
}

TEST(Cohort, RequestsStand) {
  const CohortFacts facts = ample();
  EXPECT_EQ(choose_cohort({.cohort = 3}, facts), (CohortChoice{3, 8192, 40}));
  EXPECT_EQ(choose_cohort({.cohort = 10}, facts), (CohortChoice{10, 12'500, 40}));
  EXPECT_EQ(choose_cohort({.resident = 3}, facts), (CohortChoice{3, 8192, 3}));
  EXPECT_EQ(choose_cohort({.cohort = 2, .resident = 3}, facts), (CohortChoice{2, 8192, 3}));
  EXPECT_EQ(choose_cohort({.resident = 100}, facts), (CohortChoice{8, 10'000, 40}));
}

/// A rank that hosts few clients does not hold the others back, and one without clients goes along.
TEST(Cohort, OfARankWithFewClients) {
  CohortFacts facts = ample();
  facts.num_clients = 3;  // another rank trains 40
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{8, 10'000, 3}));
  facts.num_clients = 0;
  EXPECT_EQ(choose_cohort({}, facts), (CohortChoice{8, 10'000, 0}));
}

/// When the device has less than it said, every next choice takes less, down to the least one.
TEST(Cohort, RetriesEndAtTheLeast) {
  for (const CohortRequest& request :
       {CohortRequest{}, CohortRequest{.cohort = 2}, CohortRequest{.micro_rows = 3000}}) {
    CohortFacts facts = ample();
    CohortChoice choice = choose_cohort(request, facts);
    int tries = 0;
    while (const auto budget = smaller_budget(request, facts, choice)) {
      ASSERT_LT(++tries, 100);
      facts.free_bytes = budget;
      const CohortChoice next = choose_cohort(request, facts);
      ASSERT_LT(predicted_bytes(facts, next), predicted_bytes(facts, choice));
      choice = next;
    }
    EXPECT_GT(tries, 3);
    EXPECT_EQ(choice.resident, std::max(1, request.cohort));
    EXPECT_EQ(choice.cohort, std::max(1, request.cohort));
  }
  const CohortRequest fixed{2, 3000, 4};
  EXPECT_EQ(smaller_budget(fixed, ample(), choose_cohort(fixed, ample())), std::nullopt);
}

}  // namespace
}  // namespace fedpdpo::test
