// Partition: properties that hold for every kind, alpha and seed; the counts behind them; the errors.
#include "fedpdpo/data/partition.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

#include "pair_factory.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

PairSet two_domains() {
  std::vector<std::array<int, 3>> birds(12, {40, 6, 10});
  birds[3] = {7, 1, 2};
  birds[5] = {200, 30, 50};
  birds[8] = {0, 0, 0};
  std::vector<std::array<int, 3>> fish(5, {80, 11, 20});
  return join_pair_files({counted_pair_file("birds", birds), counted_pair_file("fish", fish)});
}

PairSet one_domain(std::size_t num_labels, std::array<int, 3> counts) {
  return join_pair_files({counted_pair_file("toys", std::vector<std::array<int, 3>>(num_labels, counts))});
}

std::size_t count(const ClientShare& client, Split split) {
  return client.pairs[static_cast<std::size_t>(split)].size();
}

// (client, split, label) of the histogram.
std::int64_t cell(const std::vector<std::int64_t>& histogram, const PairSet& set, std::size_t client, std::size_t split,
                  std::size_t label) {
  return histogram[(client * 3 + split) * set.label_names.size() + label];
}

using Case = std::tuple<PartitionKind, double, std::uint64_t>;

class PartitionProperties : public ::testing::TestWithParam<Case> {
 protected:
  PartitionOptions options() const {
    PartitionOptions options;
    options.kind = std::get<0>(GetParam());
    options.alpha = std::get<1>(GetParam());
    options.seed = std::get<2>(GetParam());
    options.num_clients = 7;
    options.min_train = 5;
    return options;
  }
};

TEST_P(PartitionProperties, EveryPairHasOneOwnerOfItsDomain) {
  const PairSet set = two_domains();
  const Partition partition = make_partition(set, options());
  ASSERT_EQ(partition.clients.size(), 7u);
  std::set<PairId> seen;
  for (std::size_t c = 0; c < 7; ++c) {
    const ClientShare& client = partition.clients[c];
    EXPECT_EQ(client.domain, static_cast<std::int32_t>(c * 2 / 7));
    EXPECT_EQ(client.name, std::string(client.domain == 0 ? "birds" : "fish") + "/client00" + std::to_string(c));
    EXPECT_FALSE(client.flipped);
    EXPECT_GE(count(client, Split::train), 5u);
    EXPECT_GE(count(client, Split::test), 1u);
    for (std::size_t split = 0; split < 3; ++split) {
      for (const PairId id : client.pairs[split]) {
        EXPECT_TRUE(seen.insert(id).second);
        EXPECT_EQ(static_cast<std::int32_t>(id.file), client.domain);
        EXPECT_EQ(static_cast<std::size_t>(set.files[id.file].split[id.index]), split);
      }
    }
  }
  EXPECT_EQ(seen.size(), set.files[0].size() + set.files[1].size());
}

TEST_P(PartitionProperties, SplitsFollowTheSameProportions) {
  const PairSet set = two_domains();
  const Partition partition = make_partition(set, options());
  const std::vector<std::int64_t> histogram = partition.label_histogram(set);
  ASSERT_EQ(histogram.size(), 7u * 3 * 17);
  for (std::size_t label = 0; label < set.label_names.size(); ++label) {
    std::array<double, 3> total{};
    for (std::size_t c = 0; c < 7; ++c) {
      for (std::size_t split = 0; split < 3; ++split) {
        total[split] += static_cast<double>(cell(histogram, set, c, split, label));
      }
    }
    if (total[0] == 0) continue;
    for (std::size_t c = 0; c < 7; ++c) {
      // Each count is less than one pair from n q: train tells q within 1 / n_train.
      const double share = static_cast<double>(cell(histogram, set, c, 0, label)) / total[0];
      for (std::size_t split = 1; split < 3; ++split) {
        EXPECT_NEAR(static_cast<double>(cell(histogram, set, c, split, label)), share * total[split],
                    1 + total[split] / total[0] + 1e-9);
      }
    }
  }
  // Neither do roundings of many small categories add up: a client's share of all pairs is that of its train pairs.
  for (std::size_t domain = 0; domain < 2; ++domain) {
    std::array<double, 3> total{};
    for (const ClientShare& client : partition.clients) {
      if (client.domain != static_cast<std::int32_t>(domain)) continue;
      for (std::size_t split = 0; split < 3; ++split) total[split] += static_cast<double>(client.pairs[split].size());
    }
    for (const ClientShare& client : partition.clients) {
      if (client.domain != static_cast<std::int32_t>(domain)) continue;
      for (std::size_t split = 1; split < 3; ++split) {
        // Categories weigh differently in the splits of `birds` (by rounding of its small ones), hence the 3.
        EXPECT_NEAR(static_cast<double>(client.pairs[split].size()),
                    static_cast<double>(client.pairs[0].size()) / total[0] * total[split], 3.0);
      }
    }
  }
}

TEST_P(PartitionProperties, IsAFunctionOfItsOptions) {
  const PairSet set = two_domains();
  const Partition first = make_partition(set, options());
  const Partition again = make_partition(set, options());
  PartitionOptions other = options();
  other.seed += 1000;
  const Partition different = make_partition(set, other);
  EXPECT_EQ(first.num_redraws, again.num_redraws);
  bool any_difference = false;
  for (std::size_t c = 0; c < 7; ++c) {
    EXPECT_EQ(first.clients[c].pairs, again.clients[c].pairs);
    any_difference = any_difference || first.clients[c].pairs != different.clients[c].pairs;
  }
  EXPECT_TRUE(any_difference);
}

TEST_P(PartitionProperties, TruncationKeepsTheFirstOfTheSameOrder) {
  const PairSet set = two_domains();
  PartitionOptions cut = options();
  cut.max_train = 6;
  cut.max_validation = 2;
  cut.max_test = 4;
  const Partition all = make_partition(set, options());
  const Partition some = make_partition(set, cut);
  for (std::size_t c = 0; c < 7; ++c) {
    const std::array<std::size_t, 3> most{6, 2, 4};
    for (std::size_t split = 0; split < 3; ++split) {
      const std::vector<PairId>& whole = all.clients[c].pairs[split];
      const std::size_t kept = std::min(most[split], whole.size());
      EXPECT_EQ(some.clients[c].pairs[split],
                std::vector<PairId>(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(kept)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, PartitionProperties,
    ::testing::Combine(::testing::Values(PartitionKind::iid, PartitionKind::dirichlet, PartitionKind::quantity),
                       ::testing::Values(0.3, 1.0, 100.0),
                       ::testing::Values(std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, ~std::uint64_t{0})));

TEST(Partition, IidSharesAreEqual) {
  // Five test pairs a category for ten clients: each cut alone is lopsided, together they are not.
  const PairSet set = one_domain(67, {33, 3, 5});
  PartitionOptions options;
  options.kind = PartitionKind::iid;
  const Partition partition = make_partition(set, options);
  EXPECT_EQ(partition.num_redraws, 0);
  const std::vector<std::int64_t> histogram = partition.label_histogram(set);
  for (std::size_t c = 0; c < 10; ++c) {
    const ClientShare& client = partition.clients[c];
    EXPECT_EQ(client.name, "client00" + std::to_string(c));
    EXPECT_NEAR(static_cast<double>(count(client, Split::train)), 221.1, 1.5);
    EXPECT_NEAR(static_cast<double>(count(client, Split::validation)), 20.1, 1.5);
    EXPECT_NEAR(static_cast<double>(count(client, Split::test)), 33.5, 1.5);
    int even = 0;
    for (std::size_t label = 0; label < 67; ++label) {
      const std::int64_t train = cell(histogram, set, c, 0, label);
      EXPECT_TRUE(train == 3 || train == 4) << train;
      const std::int64_t test = cell(histogram, set, c, 2, label);
      EXPECT_TRUE(test == 0 || test == 1) << test;
      if (label % 2 == 0) even += static_cast<int>(test);
    }
    EXPECT_GT(even, 5);  // and no client has only every other category
    EXPECT_LT(even, 29);
  }
}

double entropy_of_clients(const Partition& partition, const PairSet& set) {
  const std::vector<std::int64_t> histogram = partition.label_histogram(set);
  double sum = 0;
  for (std::size_t c = 0; c < partition.clients.size(); ++c) {
    const auto total = static_cast<double>(count(partition.clients[c], Split::train));
    for (std::size_t label = 0; label < set.label_names.size(); ++label) {
      const double share = static_cast<double>(cell(histogram, set, c, 0, label)) / total;
      if (share > 0) sum -= share * std::log(share);
    }
  }
  return sum / static_cast<double>(partition.clients.size());
}

TEST(Partition, SmallerAlphaMeansMoreSkew) {
  const PairSet set = one_domain(20, {100, 5, 20});
  PartitionOptions options;
  options.num_clients = 5;
  std::map<double, double> entropy;
  for (const double alpha : {0.05, 0.5, 50.0}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      options.alpha = alpha;
      options.seed = seed;
      entropy[alpha] += entropy_of_clients(make_partition(set, options), set) / 5;
    }
  }
  EXPECT_LT(entropy[0.05] + 0.5, entropy[0.5]);
  EXPECT_LT(entropy[0.5] + 0.2, entropy[50.0]);
  EXPECT_GT(entropy[50.0], std::log(20.0) - 0.05);
}

TEST(Partition, DirichletProportionsHaveTheRightMoments) {
  // One category: a client's share is Beta(alpha, (K - 1) alpha): mean 1/K, variance (K - 1) / (K^2 (K alpha + 1)).
  const PairSet set = one_domain(1, {20000, 0, 20000});
  PartitionOptions options;
  options.num_clients = 4;
  options.alpha = 1;
  options.min_train = 0;
  double sum = 0;
  double sum_of_squares = 0;
  constexpr int num_seeds = 300;
  for (std::uint64_t seed = 0; seed < num_seeds; ++seed) {
    options.seed = seed;
    const Partition partition = make_partition(set, options);
    const double share = static_cast<double>(count(partition.clients[1], Split::train)) / 20000;
    sum += share;
    sum_of_squares += share * share;
  }
  const double mean = sum / num_seeds;
  EXPECT_NEAR(mean, 0.25, 4 * std::sqrt(0.0375 / num_seeds));
  EXPECT_NEAR(sum_of_squares / num_seeds - mean * mean, 3.0 / (16 * 5), 0.01);
}

TEST(Partition, QuantityChangesSizesNotKinds) {
  const PairSet set = one_domain(10, {300, 30, 100});
  PartitionOptions options;
  options.kind = PartitionKind::quantity;
  options.num_clients = 4;
  options.alpha = 0.5;
  options.seed = 3;
  const Partition partition = make_partition(set, options);
  const std::vector<std::int64_t> histogram = partition.label_histogram(set);
  std::size_t smallest = 3000;
  std::size_t largest = 0;
  for (std::size_t c = 0; c < 4; ++c) {
    const std::size_t size = count(partition.clients[c], Split::train);
    smallest = std::min(smallest, size);
    largest = std::max(largest, size);
    for (std::size_t label = 0; label < 10; ++label) {
      EXPECT_NEAR(static_cast<double>(cell(histogram, set, c, 0, label)), static_cast<double>(size) / 10, 1.2);
    }
  }
  EXPECT_GT(largest, 2 * smallest);
}

TEST(Partition, TruncationKeepsTheLabelProportions) {
  const PairSet set = join_pair_files({counted_pair_file("toys", {{600, 10, 10}, {300, 10, 10}, {100, 10, 10}})});
  PartitionOptions options;
  options.kind = PartitionKind::iid;
  options.num_clients = 2;
  options.max_train = 100;
  std::array<double, 3> mean{};
  constexpr int num_seeds = 50;
  for (std::uint64_t seed = 0; seed < num_seeds; ++seed) {
    options.seed = seed;
    const Partition partition = make_partition(set, options);
    ASSERT_EQ(count(partition.clients[0], Split::train), 100u);
    const std::vector<std::int64_t> histogram = partition.label_histogram(set);
    for (std::size_t label = 0; label < 3; ++label) {
      mean[label] += static_cast<double>(cell(histogram, set, 0, 0, label)) / num_seeds;
    }
  }
  EXPECT_NEAR(mean[0], 60, 2.5);
  EXPECT_NEAR(mean[1], 30, 2.5);
  EXPECT_NEAR(mean[2], 10, 2);
}

TEST(Partition, MinimumIsReachedByRedrawing) {
  const PairSet set = one_domain(2, {60, 5, 30});
  PartitionOptions options;
  options.num_clients = 5;
  options.alpha = 0.3;
  options.min_train = 12;
  int num_redraws = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    options.seed = seed;
    const Partition partition = make_partition(set, options);
    num_redraws += partition.num_redraws;
    for (const ClientShare& client : partition.clients) {
      EXPECT_GE(count(client, Split::train), 12u);
      EXPECT_GE(count(client, Split::test), 1u);
    }
  }
  EXPECT_GT(num_redraws, 10);
}

TEST(Partition, AMinimumAboveTheMaximumMeansTheMaximum) {
  PartitionOptions options;
  options.num_clients = 4;
  options.max_train = 3;
  const Partition partition = make_partition(one_domain(3, {40, 4, 10}), options);
  for (const ClientShare& client : partition.clients) EXPECT_EQ(count(client, Split::train), 3u);

  options.kind = PartitionKind::iid;
  options.min_train = 8;  // 20 pairs are too few for four times 8, and enough for four times 3
  EXPECT_NO_THROW(make_partition(one_domain(1, {20, 4, 10}), options));
}

TEST(Partition, EveryClientHasATestPair) {
  PartitionOptions options;
  options.num_clients = 4;
  options.min_train = 1;
  int num_redraws = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    options.seed = seed;
    const Partition partition = make_partition(one_domain(1, {4000, 4, 6}), options);
    num_redraws += partition.num_redraws;
    for (const ClientShare& client : partition.clients) EXPECT_GE(count(client, Split::test), 1u);
  }
  EXPECT_GT(num_redraws, 10);
}

TEST(Partition, FlipsExactlyTheAskedShare) {
  const PairSet set = one_domain(3, {100, 10, 40});
  PartitionOptions options;
  options.kind = PartitionKind::iid;
  std::array<int, 10> how_often{};
  for (const auto& [share, expected] :
       std::map<double, int>{{0.0, 0}, {0.04, 0}, {0.06, 1}, {0.3, 3}, {0.5, 5}, {1.0, 10}}) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      options.flip_clients = share;
      options.seed = seed;
      const Partition partition = make_partition(set, options);
      int flipped = 0;
      for (std::size_t c = 0; c < 10; ++c) {
        flipped += partition.clients[c].flipped ? 1 : 0;
        if (share == 0.5) how_often[c] += partition.clients[c].flipped ? 1 : 0;
      }
      EXPECT_EQ(flipped, expected) << share;
    }
  }
  for (const int times : how_often) {  // Binomial(40, 1/2)
    EXPECT_GT(times, 6);
    EXPECT_LT(times, 34);
  }
}

TEST(Partition, FlipsDoNotMoveThePairs) {
  const PairSet set = one_domain(3, {100, 10, 40});
  PartitionOptions options;
  const Partition plain = make_partition(set, options);
  options.flip_clients = 0.5;
  const Partition flipped = make_partition(set, options);
  for (std::size_t c = 0; c < 10; ++c) EXPECT_EQ(plain.clients[c].pairs, flipped.clients[c].pairs);
}

// A recorded value: a change to it changes every partition that was ever published.
TEST(Partition, IsTheSameOnEveryPlatform) {
  const PairSet set = one_domain(4, {20, 4, 8});
  PartitionOptions options;
  options.num_clients = 3;
  options.min_train = 4;
  options.seed = 2026;
  const Partition partition = make_partition(set, options);
  std::uint64_t hash = 1469598103934665603u;  // FNV-1a
  for (const ClientShare& client : partition.clients) {
    for (const std::vector<PairId>& pairs : client.pairs) {
      for (const PairId id : pairs) hash = (hash ^ id.index) * 1099511628211u;
      hash = (hash ^ 0xFFFFu) * 1099511628211u;
    }
  }
  EXPECT_EQ(hash, 17717582335795883924u);
}

TEST(PartitionErrors, NameTheOption) {
  const PairSet set = two_domains();
  PartitionOptions options;
  options.num_clients = 0;
  EXPECT_INPUT_ERROR(make_partition(set, options), "--clients: expected at least 1, found 0");
  options.num_clients = 1;
  EXPECT_INPUT_ERROR(make_partition(set, options), "--clients: expected at least 2, one for each pair file, found 1");
  options.num_clients = 4;
  for (const double alpha : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    options.alpha = alpha;
    EXPECT_INPUT_ERROR(make_partition(set, options), "--alpha: expected a number above 0, found");
  }
  options.kind = PartitionKind::iid;
  EXPECT_NO_THROW(make_partition(set, options));  // alpha means nothing here
  for (const double share : {-0.1, 1.1, std::nan("")}) {
    options.flip_clients = share;
    EXPECT_INPUT_ERROR(make_partition(set, options), "--flip-clients: expected a share between 0 and 1, found");
  }
}

TEST(PartitionErrors, TooFewPairs) {
  PartitionOptions options;
  options.num_clients = 10;
  EXPECT_INPUT_ERROR(make_partition(one_domain(1, {79, 5, 20}), options),
                     "toys.h5: train pairs: expected at least 80, 8 for each of 10 clients, found 79; lower --clients "
                     "or --min-train");
  EXPECT_INPUT_ERROR(make_partition(one_domain(1, {800, 5, 9}), options),
                     "toys.h5: test pairs: expected at least 10, 1 for each of 10 clients, found 9; lower --clients");
  options.min_train = 0;
  EXPECT_INPUT_ERROR(make_partition(one_domain(1, {9, 5, 20}), options),
                     "toys.h5: train pairs: expected at least 10, 1 for each of 10 clients, found 9");
}

TEST(PartitionErrors, RedrawsAreBounded) {
  PartitionOptions options;
  options.num_clients = 3;
  options.alpha = 1e-6;  // all pairs of the only category go to one client
  try {
    make_partition(one_domain(1, {100, 5, 20}), options);
    FAIL() << "no error";
  } catch (const InputError& error) {
    const std::string line = error.what();
    EXPECT_NE(line.find("toys.h5: client00"), std::string::npos) << line;
    EXPECT_NE(line.find("expected at least 8 train and 1 test pairs in one of 5001 draws, found 0 and 0 in the last "
                        "one; raise --alpha, or lower --clients or --min-train"),
              std::string::npos)
        << line;
  }
}

}  // namespace
}  // namespace fedpdpo::test
