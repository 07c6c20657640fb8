// Packing: small cases worked by hand for every option, and random pairs whose every (context, target) is rebuilt from
// segments and positions and compared with the plain sequences.
#include "fedpdpo/data/packing.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "pair_factory.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

using Ints = std::vector<std::int32_t>;

std::vector<Ints> segments_of(const PackedBatch& batch) {
  std::vector<Ints> list;
  for (const Segment& s : batch.segments) list.push_back({s.begin, s.end, s.context_begin, s.context_end});
  return list;
}

std::vector<Ints> members_of(const std::vector<MemberRows>& members) {
  std::vector<Ints> list;
  for (const MemberRows& m : members) list.push_back({m.begin, m.end, m.slot});
  return list;
}

std::vector<Ints> responses_of(const PackedBatch& batch) {
  std::vector<Ints> list;
  for (const ResponseRows& r : batch.responses) list.push_back({r.common_begin, r.common_end, r.own_begin, r.own_end});
  return list;
}

Ints bounds_of(const PackedPair& pair) {
  return {pair.target_begin, pair.common_end, pair.chosen_end, pair.target_end};
}

// Prompt 1 2; chosen 5 6 7; rejected 5 8: one common token.
PairSet one_pair() {
  PairFile file = empty_pair_file("toys", {"any"});
  append_pair(file, {1, 2}, {5, 6, 7}, {5, 8});
  return join_pair_files({file});
}

PackedBatch pack_all(const PairSet& set, const PackingOptions& options, bool flipped = false) {
  std::vector<PairToPack> pairs;
  for (std::uint32_t i = 0; i < set.files[0].size(); ++i) pairs.push_back({{0, i}, flipped});
  const MemberPairs member{4, pairs};
  PackedBatch batch;
  pack(set, std::span(&member, 1), options, batch);
  return batch;
}

TEST(Packing, SharedWithLastRows) {
  const PairSet set = one_pair();
  const PackedBatch batch = pack_all(set, {.keep_last_rows = true, .share_prefix = true});
  EXPECT_EQ(batch.tokens, (Ints{1, 2, 5, 6, 7, 8}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 4, 3}));
  EXPECT_EQ(segments_of(batch), (std::vector<Ints>{{0, 3, 0, 0}, {3, 5, 0, 3}, {5, 6, 0, 3}}));
  EXPECT_EQ(batch.segment_groups, (Ints{0, 3}));
  EXPECT_EQ(batch.target_rows, (Ints{1, 2, 3, 2}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 6, 7, 8}));
  ASSERT_EQ(batch.pairs.size(), 1u);
  EXPECT_EQ(bounds_of(batch.pairs[0]), (Ints{0, 1, 3, 4}));
  EXPECT_EQ(batch.pairs[0].chosen_length, 3);
  EXPECT_EQ(batch.pairs[0].rejected_length, 2);
  EXPECT_EQ(responses_of(batch), (std::vector<Ints>{{2, 3, 3, 5}, {2, 3, 5, 6}}));
  EXPECT_EQ(batch.responses[0].count(), 3);
  EXPECT_EQ(batch.responses[0].last(), 4);
  EXPECT_EQ(batch.responses[1].last(), 5);
  EXPECT_EQ(members_of(batch.clients), (std::vector<Ints>{{0, 6, 4}}));
  EXPECT_EQ(members_of(batch.client_targets), (std::vector<Ints>{{0, 4, 4}}));
  EXPECT_EQ(members_of(batch.client_responses), (std::vector<Ints>{{0, 2, 4}}));
  EXPECT_EQ(packed_rows(set.files[0], 0, {.keep_last_rows = true, .share_prefix = true}), 6);
}

TEST(Packing, SharedWithoutLastRows) {
  const PairSet set = one_pair();
  const PackedBatch batch = pack_all(set, {.keep_last_rows = false, .share_prefix = true});
  EXPECT_EQ(batch.tokens, (Ints{1, 2, 5, 6}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3}));
  EXPECT_EQ(segments_of(batch), (std::vector<Ints>{{0, 3, 0, 0}, {3, 4, 0, 3}}));  // rejected: no row of its own
  EXPECT_EQ(batch.segment_groups, (Ints{0, 2}));
  EXPECT_EQ(batch.target_rows, (Ints{1, 2, 3, 2}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 6, 7, 8}));
  EXPECT_EQ(bounds_of(batch.pairs.at(0)), (Ints{0, 1, 3, 4}));
  EXPECT_TRUE(batch.responses.empty());
  EXPECT_EQ(members_of(batch.clients), (std::vector<Ints>{{0, 4, 4}}));
  EXPECT_EQ(members_of(batch.client_responses), (std::vector<Ints>{{0, 0, 4}}));
  EXPECT_EQ(packed_rows(set.files[0], 0, {.keep_last_rows = false, .share_prefix = true}), 4);
}

TEST(Packing, SeparateWithLastRows) {
  const PairSet set = one_pair();
  const PackedBatch batch = pack_all(set, {.keep_last_rows = true, .share_prefix = false});
  EXPECT_EQ(batch.tokens, (Ints{1, 2, 5, 6, 7, 1, 2, 5, 8}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 4, 0, 1, 2, 3}));
  EXPECT_EQ(segments_of(batch), (std::vector<Ints>{{0, 5, 0, 0}, {5, 9, 5, 5}}));
  EXPECT_EQ(batch.segment_groups, (Ints{0, 1, 2}));
  EXPECT_EQ(batch.target_rows, (Ints{1, 2, 3, 6, 7}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 6, 7, 5, 8}));
  EXPECT_EQ(bounds_of(batch.pairs.at(0)), (Ints{0, 0, 3, 5}));
  EXPECT_EQ(responses_of(batch), (std::vector<Ints>{{2, 2, 2, 5}, {7, 7, 7, 9}}));
  EXPECT_EQ(packed_rows(set.files[0], 0, {.keep_last_rows = true, .share_prefix = false}), 9);
}

TEST(Packing, SeparateWithoutLastRows) {
  const PairSet set = one_pair();
  const PackedBatch batch = pack_all(set, {.keep_last_rows = false, .share_prefix = false});
  EXPECT_EQ(batch.tokens, (Ints{1, 2, 5, 6, 1, 2, 5}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 3, 0, 1, 2}));
  EXPECT_EQ(segments_of(batch), (std::vector<Ints>{{0, 4, 0, 0}, {4, 7, 4, 4}}));
  EXPECT_EQ(batch.segment_groups, (Ints{0, 1, 2}));
  EXPECT_EQ(batch.target_rows, (Ints{1, 2, 3, 5, 6}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 6, 7, 5, 8}));
  EXPECT_EQ(bounds_of(batch.pairs.at(0)), (Ints{0, 0, 3, 5}));
  EXPECT_TRUE(batch.responses.empty());
  EXPECT_EQ(packed_rows(set.files[0], 0, {.keep_last_rows = false, .share_prefix = false}), 7);
}

TEST(Packing, AFlippedPairSwapsItsResponses) {
  const PackedBatch batch = pack_all(one_pair(), {}, true);
  EXPECT_EQ(batch.tokens, (Ints{1, 2, 5, 8, 6, 7}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 8, 6, 7}));
  EXPECT_EQ(batch.target_rows, (Ints{1, 2, 2, 4}));
  EXPECT_EQ(bounds_of(batch.pairs.at(0)), (Ints{0, 1, 2, 4}));
  EXPECT_EQ(batch.pairs[0].chosen_length, 2);
  EXPECT_EQ(batch.pairs[0].rejected_length, 3);
  EXPECT_TRUE(batch.pairs[0].flipped);
}

// Equal responses, and one that begins the other: each branch keeps its last token.
TEST(Packing, EachBranchKeepsATokenOfItsOwn) {
  PairFile file = empty_pair_file("toys", {"any"});
  append_pair(file, {1}, {5, 6}, {5, 6});
  append_pair(file, {1}, {5}, {5, 6, 7});
  const PairSet set = join_pair_files({file});
  const PackedBatch batch = pack_all(set, {});
  EXPECT_EQ(batch.tokens, (Ints{1, 5, 6, 6, 1, 5, 5, 6, 7}));
  EXPECT_EQ(batch.positions, (Ints{0, 1, 2, 2, 0, 1, 1, 2, 3}));
  EXPECT_EQ(segments_of(batch),
            (std::vector<Ints>{{0, 2, 0, 0}, {2, 3, 0, 2}, {3, 4, 0, 2}, {4, 5, 4, 4}, {5, 6, 4, 5}, {6, 9, 4, 5}}));
  EXPECT_EQ(batch.segment_groups, (Ints{0, 3, 6}));
  EXPECT_EQ(batch.target_rows, (Ints{0, 1, 1, 4, 4, 6, 7}));
  EXPECT_EQ(batch.target_tokens, (Ints{5, 6, 6, 5, 5, 6, 7}));
  EXPECT_EQ(bounds_of(batch.pairs.at(1)), (Ints{3, 3, 4, 7}));
  EXPECT_EQ(responses_of(batch), (std::vector<Ints>{{1, 2, 2, 3}, {1, 2, 3, 4}, {5, 5, 5, 6}, {5, 5, 6, 9}}));

  // Without last rows both branches of the first pair vanish: their only targets come from the prefix.
  const PackedBatch shorter = pack_all(set, {.keep_last_rows = false});
  EXPECT_EQ(shorter.tokens, (Ints{1, 5, 1, 5, 6}));
  EXPECT_EQ(segments_of(shorter), (std::vector<Ints>{{0, 2, 0, 0}, {2, 3, 2, 2}, {3, 5, 2, 3}}));
  EXPECT_EQ(shorter.segment_groups, (Ints{0, 1, 3}));
  EXPECT_EQ(shorter.target_rows, (Ints{0, 1, 1, 2, 2, 3, 4}));
}

TEST(Packing, MembersLieOneAfterAnother) {
  PairFile file = empty_pair_file("toys", {"any"});
  append_pair(file, {1, 2}, {5}, {6});
  append_pair(file, {3}, {7}, {8});
  const PairSet set = join_pair_files({file});
  const std::vector<PairToPack> first{{{0, 1}, false}, {{0, 0}, false}};
  const std::vector<PairToPack> third{{{0, 0}, true}};
  const std::vector<MemberPairs> members{{7, first}, {2, {}}, {5, third}};
  PackedBatch batch;
  pack(set, members, {}, batch);
  EXPECT_EQ(batch.tokens, (Ints{3, 7, 8, 1, 2, 5, 6, 1, 2, 6, 5}));
  EXPECT_EQ(members_of(batch.clients), (std::vector<Ints>{{0, 7, 7}, {7, 7, 2}, {7, 11, 5}}));
  EXPECT_EQ(members_of(batch.client_targets), (std::vector<Ints>{{0, 4, 7}, {4, 4, 2}, {4, 6, 5}}));
  EXPECT_EQ(members_of(batch.client_responses), (std::vector<Ints>{{0, 4, 7}, {4, 4, 2}, {4, 6, 5}}));
  ASSERT_EQ(batch.pairs.size(), 3u);
  EXPECT_EQ(batch.pairs[0].member, 0);
  EXPECT_EQ(batch.pairs[0].id, (PairId{0, 1}));
  EXPECT_EQ(batch.pairs[2].member, 2);
  EXPECT_EQ(batch.pairs[2].id, (PairId{0, 0}));
}

TEST(Packing, NoPairsGiveAnEmptyBatch) {
  PackedBatch batch = pack_all(one_pair(), {});
  pack(one_pair(), {}, {}, batch);
  EXPECT_EQ(batch.num_rows(), 0);
  EXPECT_EQ(batch.num_targets(), 0);
  EXPECT_EQ(batch.segment_groups, (Ints{0}));
  EXPECT_TRUE(batch.segments.empty() && batch.clients.empty() && batch.pairs.empty() && batch.responses.empty());
}

TEST(Packing, ABatchKeepsItsMemory) {
  PairFile file = empty_pair_file("toys", {"any"});
  RandomStream random({.seed = 5, .purpose = Purpose::test});
  for (int i = 0; i < 30; ++i) append_random_pair(file, random);
  const PairSet set = join_pair_files({file});
  PackedBatch batch = pack_all(set, {});
  const PackedBatch expected = pack_all(one_pair(), {});
  const auto addresses = [&] {
    return std::tuple(batch.tokens.data(), batch.positions.data(), batch.segments.data(), batch.segment_groups.data(),
                      batch.clients.data(), batch.target_rows.data(), batch.target_tokens.data(),
                      batch.client_targets.data(), batch.client_responses.data(), batch.responses.data(),
                      batch.pairs.data());
  };
  const auto before = addresses();
  const std::vector<PairToPack> pairs{{{0, 0}, false}};
  const MemberPairs member{4, pairs};
  pack(one_pair(), std::span(&member, 1), {}, batch);
  EXPECT_EQ(before, addresses());
  EXPECT_EQ(batch.tokens, expected.tokens);  // and nothing of the larger batch is left
  EXPECT_EQ(batch.target_rows, expected.target_rows);
  EXPECT_EQ(segments_of(batch), segments_of(expected));
  EXPECT_EQ(responses_of(batch), responses_of(expected));
}

TEST(Packing, RefusesPairsThatAreNotThere) {
  const std::vector<PairToPack> pairs{{{0, 1}, false}};
  const MemberPairs member{0, pairs};
  PackedBatch batch;
  EXPECT_CONTRACT_VIOLATION(pack(one_pair(), std::span(&member, 1), {}, batch), "not in the set");
}

class PackingOfRandomPairs : public ::testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  PackingOptions options() const {
    return {.keep_last_rows = std::get<0>(GetParam()), .share_prefix = std::get<1>(GetParam())};
  }
};

// What a row attends to, itself last, as (position, token) pairs in order of position.
std::vector<std::pair<std::int32_t, std::int32_t>> context_of(const PackedBatch& batch, std::int32_t row) {
  std::vector<std::pair<std::int32_t, std::int32_t>> context;
  int num_segments = 0;
  for (const Segment& segment : batch.segments) {
    if (row < segment.begin || row >= segment.end) continue;
    ++num_segments;
    for (std::int32_t r = segment.context_begin; r < segment.context_end; ++r) {
      context.emplace_back(batch.positions[static_cast<std::size_t>(r)], batch.tokens[static_cast<std::size_t>(r)]);
    }
    for (std::int32_t r = segment.begin; r <= row; ++r) {
      context.emplace_back(batch.positions[static_cast<std::size_t>(r)], batch.tokens[static_cast<std::size_t>(r)]);
    }
  }
  EXPECT_EQ(num_segments, 1) << "row " << row;
  return context;
}

TEST_P(PackingOfRandomPairs, EveryTargetHasItsContext) {
  RandomStream random({.seed = 21, .purpose = Purpose::test});
  std::int64_t num_common = 0;
  for (int trial = 0; trial < 60; ++trial) {
    PairFile file = empty_pair_file("toys", {"any"});
    for (std::uint64_t i = 1 + random.below(8); i > 0; --i) append_random_pair(file, random);
    const PairSet set = join_pair_files({file});
    std::vector<PairToPack> pairs;
    for (std::uint32_t i = 0; i < set.files[0].size(); ++i) pairs.push_back({{0, i}, random.below(2) == 1});
    const MemberPairs member{0, pairs};
    PackedBatch batch;
    pack(set, std::span(&member, 1), options(), batch);

    std::int32_t expected_rows = 0;
    std::int32_t next_target = 0;
    for (std::size_t p = 0; p < pairs.size(); ++p) {
      const PackedPair& pair = batch.pairs[p];
      expected_rows += packed_rows(set.files[0], pairs[p].id.index, options());
      EXPECT_EQ(pair.target_begin, next_target);
      next_target = pair.target_end;
      num_common += pair.common_end - pair.target_begin;
      const std::array<const RaggedTokens*, 2> stored{&set.files[0].chosen, &set.files[0].rejected};
      for (int side = 0; side < 2; ++side) {
        const auto response = (*stored[static_cast<std::size_t>(side ^ (pair.flipped ? 1 : 0))])[pairs[p].id.index];
        EXPECT_EQ(side == 0 ? pair.chosen_length : pair.rejected_length, static_cast<std::int32_t>(response.size()));
        std::vector<std::int32_t> targets;
        for (auto t = pair.target_begin; t < pair.common_end; ++t) targets.push_back(t);
        for (auto t = side == 0 ? pair.common_end : pair.chosen_end;
             t < (side == 0 ? pair.chosen_end : pair.target_end); ++t) {
          targets.push_back(t);
        }
        ASSERT_EQ(targets.size(), response.size());
        std::vector<std::pair<std::int32_t, std::int32_t>> plain;
        for (const auto token : set.files[0].prompt[pairs[p].id.index]) {
          plain.emplace_back(static_cast<std::int32_t>(plain.size()), static_cast<std::int32_t>(token));
        }
        for (std::size_t j = 0; j < response.size(); ++j) {
          const auto target = static_cast<std::size_t>(targets[j]);
          EXPECT_EQ(batch.target_tokens[target], static_cast<std::int32_t>(response[j]));
          EXPECT_EQ(context_of(batch, batch.target_rows[target]), plain);
          plain.emplace_back(static_cast<std::int32_t>(plain.size()), static_cast<std::int32_t>(response[j]));
        }
        if (!options().keep_last_rows) continue;
        const ResponseRows rows = batch.responses[2 * p + static_cast<std::size_t>(side)];
        EXPECT_EQ(rows.count(), static_cast<std::int32_t>(response.size()));
        EXPECT_EQ(context_of(batch, rows.last()), plain);
        std::vector<std::int32_t> pooled(batch.tokens.begin() + rows.common_begin,
                                         batch.tokens.begin() + rows.common_end);
        pooled.insert(pooled.end(), batch.tokens.begin() + rows.own_begin, batch.tokens.begin() + rows.own_end);
        EXPECT_EQ(pooled, std::vector<std::int32_t>(response.begin(), response.end()));
      }
    }
    EXPECT_EQ(batch.num_rows(), expected_rows);
    EXPECT_EQ(batch.num_targets(), next_target);
    EXPECT_EQ(batch.segment_groups.size(), (options().share_prefix ? 1 : 2) * pairs.size() + 1);
    EXPECT_EQ(batch.segment_groups.back(), static_cast<std::int32_t>(batch.segments.size()));
    // Segments tile the rows, and look at nothing outside their group.
    std::int32_t row = 0;
    for (std::size_t group = 0; group + 1 < batch.segment_groups.size(); ++group) {
      const std::int32_t group_begin = row;
      for (auto s = batch.segment_groups[group]; s < batch.segment_groups[group + 1]; ++s) {
        const Segment& segment = batch.segments[static_cast<std::size_t>(s)];
        EXPECT_EQ(segment.begin, row);
        EXPECT_GT(segment.end, segment.begin);
        EXPECT_GE(segment.context_begin, group_begin);
        EXPECT_LE(segment.context_end, segment.begin);
        row = segment.end;
      }
      EXPECT_GT(row, group_begin);
    }
    EXPECT_EQ(row, batch.num_rows());
  }
  if (options().share_prefix) {
    EXPECT_GT(num_common, 100);
  } else {
    EXPECT_EQ(num_common, 0);
  }
}

TEST_P(PackingOfRandomPairs, AreCutByRows) {
  RandomStream random({.seed = 22, .purpose = Purpose::test});
  PairFile file = empty_pair_file("toys", {"any"});
  for (int i = 0; i < 50; ++i) append_random_pair(file, random);
  const PairSet set = join_pair_files({file});
  std::vector<PairToPack> pairs;
  for (std::uint32_t i = 0; i < 50; ++i) pairs.push_back({{0, i}, false});
  for (const std::int32_t max_rows : {1, 10, 25, 60, 100000}) {
    const std::vector<std::size_t> cuts = cut_by_rows(set, pairs, options(), max_rows);
    ASSERT_GE(cuts.size(), 2u);
    EXPECT_EQ(cuts.front(), 0u);
    EXPECT_EQ(cuts.back(), pairs.size());
    const auto rows_between = [&](std::size_t begin, std::size_t end) {
      std::int32_t rows = 0;
      for (std::size_t i = begin; i < end; ++i) rows += packed_rows(set.files[0], i, options());
      return rows;
    };
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      ASSERT_LT(cuts[i], cuts[i + 1]);
      if (cuts[i + 1] - cuts[i] > 1) {
        EXPECT_LE(rows_between(cuts[i], cuts[i + 1]), max_rows);
      }
      if (cuts[i + 1] < pairs.size()) {
        EXPECT_GT(rows_between(cuts[i], cuts[i + 1] + 1), max_rows);
      }
    }
  }
  EXPECT_EQ(cut_by_rows(set, pairs, options(), 1).size(), 51u);
  EXPECT_EQ(cut_by_rows(set, pairs, options(), 100000).size(), 2u);
  EXPECT_EQ(cut_by_rows(set, {}, options(), 10), (std::vector<std::size_t>{0}));
}

INSTANTIATE_TEST_SUITE_P(Options, PackingOfRandomPairs, ::testing::Combine(::testing::Bool(), ::testing::Bool()));

TEST(Packing, SizeClassesAreFewAndClose) {
  EXPECT_EQ(size_class(0), 0);
  EXPECT_EQ(size_class(1), 32);
  EXPECT_EQ(size_class(32), 32);
  EXPECT_EQ(size_class(33), 64);
  EXPECT_EQ(size_class(512), 512);
  EXPECT_EQ(size_class(513), 576);
  EXPECT_EQ(size_class(1025), 1152);
  for (std::int32_t n = 256; n < 100'000; n += 7) {
    ASSERT_GE(size_class(n), n);
    ASSERT_LE(size_class(n), n + n / 8);
    ASSERT_EQ(size_class(size_class(n)), size_class(n));
  }
}

TEST(Packing, FillingChangesNothingOfThePairs) {
  RandomStream random({.seed = 23, .purpose = Purpose::test});
  PairFile file = empty_pair_file("toys", {"any"});
  for (int i = 0; i < 9; ++i) append_random_pair(file, random);
  const PairSet set = join_pair_files({file});
  for (const bool last_rows : {false, true}) {
    // Members of several pairs, none, and one.
    std::vector<std::vector<PairToPack>> lists(4);
    for (std::uint32_t i = 0; i < 9; ++i) lists[i < 5 ? 0 : i < 8 ? 2 : 3].push_back({{0, i}, i % 2 == 1});
    std::vector<MemberPairs> members;
    for (std::size_t m = 0; m < lists.size(); ++m) members.push_back({static_cast<std::int32_t>(7 - m), lists[m]});
    PackedBatch plain, filled;
    pack(set, members, {.keep_last_rows = last_rows}, plain);
    pack(set, members, {.keep_last_rows = last_rows, .filling = Filling::size_classes}, filled);
    ASSERT_EQ(filled.pairs.size(), plain.pairs.size());
    EXPECT_EQ(filled.responses.size(), plain.responses.size());
    EXPECT_EQ(filled.segments.size(), plain.segments.size() + members.size());

    std::int32_t most_rows = 0, most_targets = 0;
    for (std::size_t m = 0; m < members.size(); ++m) {
      most_rows = std::max(most_rows, plain.clients[m].end - plain.clients[m].begin);
      most_targets = std::max(most_targets, plain.client_targets[m].end - plain.client_targets[m].begin);
    }
    const std::int32_t rows = size_class(most_rows + 1), targets = size_class(most_targets);
    for (std::int32_t m = 0; m < 4; ++m) {
      EXPECT_EQ(members_of(filled.clients)[m], (Ints{m * rows, (m + 1) * rows, 7 - m}));
      EXPECT_EQ(members_of(filled.client_targets)[m], (Ints{m * targets, (m + 1) * targets, 7 - m}));
    }
    std::vector<bool> used(filled.target_rows.size());
    for (std::size_t i = 0; i < plain.pairs.size(); ++i) {
      const PackedPair &a = plain.pairs[i], &b = filled.pairs[i];
      const auto [begin_a, end_a] = plain.rows_of_pair(i);
      const auto [begin_b, end_b] = filled.rows_of_pair(i);
      ASSERT_EQ(end_a - begin_a, end_b - begin_b);
      for (std::size_t r = 0; r < end_a - begin_a; ++r) {
        EXPECT_EQ(filled.tokens[begin_b + r], plain.tokens[begin_a + r]);
        EXPECT_EQ(filled.positions[begin_b + r], plain.positions[begin_a + r]);
      }
      const auto shifted = static_cast<std::int32_t>(begin_b) - static_cast<std::int32_t>(begin_a);
      ASSERT_EQ(b.target_end - b.target_begin, a.target_end - a.target_begin);
      EXPECT_EQ(b.common_end - b.target_begin, a.common_end - a.target_begin);
      EXPECT_EQ(b.chosen_end - b.target_begin, a.chosen_end - a.target_begin);
      EXPECT_EQ(b.target_begin / targets, a.member) << "a target of another member";
      for (std::int32_t t = 0; t < a.target_end - a.target_begin; ++t) {
        const auto at_a = static_cast<std::size_t>(a.target_begin + t),
                   at_b = static_cast<std::size_t>(b.target_begin + t);
        EXPECT_EQ(filled.target_tokens[at_b], plain.target_tokens[at_a]);
        EXPECT_EQ(filled.target_rows[at_b], plain.target_rows[at_a] + shifted);
        used[at_b] = true;
      }
    }
    // What fills up predicts from a row that is no pair's.
    for (std::size_t t = 0; t < used.size(); ++t) {
      if (!used[t]) {
        EXPECT_EQ(filled.target_rows[t] % rows, rows - 1) << t;
      }
    }
  }
}

}  // namespace
}  // namespace fedpdpo::test
