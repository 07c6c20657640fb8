// Packed, prefix-shared batches. A pair is one run of rows
//
//   [ prefix = prompt + common beginning of the responses | rest of chosen | rest of rejected ]
//
// in which the two rests attend to the prefix and to themselves and their positions both go on after the prefix:
// shared tokens are computed once. Batches are the concatenation of such runs, never padded. Each branch keeps at least
// one token of its own. The common beginning is exact for every loss: its targets count for both responses.
//
// A row predicts the token after it; the last row of the prefix predicts two, the first own token of each branch, and
// is listed twice. Rows that predict nothing are the response ends; they are kept only where `keep_last_rows` asks for
// them (the reward head pools over them). Without them a branch of one token has no row and no segment.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fedpdpo/backend/batch.hpp"
#include "fedpdpo/data/pairs.hpp"

namespace fedpdpo {

/// Where a pair's numbers lie in the batch's flat lists.
struct PackedPair {
  PairId id;
  bool flipped = false;
  std::int32_t member = 0;        ///< index into PackedBatch::clients
  std::int32_t group = 0;         ///< of its first segment
  std::int32_t target_begin = 0;  ///< targets [begin, common_end) belong to both responses,
  std::int32_t common_end = 0;    ///<         [common_end, chosen_end) to the chosen,
  std::int32_t chosen_end = 0;    ///<         [chosen_end, end) to the rejected one
  std::int32_t target_end = 0;
  std::int32_t chosen_length = 0;  ///< response tokens
  std::int32_t rejected_length = 0;
};

/// Rows over which a response's reward is pooled: [common_begin, common_end) and [own_begin, own_end).
struct ResponseRows {
  std::int32_t common_begin = 0, common_end = 0;
  std::int32_t own_begin = 0, own_end = 0;

  std::int32_t count() const { return (common_end - common_begin) + (own_end - own_begin); }
  std::int32_t last() const { return own_end - 1; }
};

/// What batches are filled up with.
enum class Filling : std::uint8_t {
  none,
  /// Every member's rows and targets up to one size of few (size_class of the largest member): rows of a group of their
  /// own, which no pair sees, and targets of them that belong to no pair. So batches of few shapes recur.
  size_classes,
};

struct PackedBatch {
  std::vector<std::int32_t> tokens;          // (T)
  std::vector<std::int32_t> positions;       // (T)
  std::vector<Segment> segments;             // in row order, none empty
  std::vector<std::int32_t> segment_groups;  // offsets: segments of one pair attend to nothing outside it
  std::vector<MemberRows> clients;           // one a member, contiguous, in row order
  std::vector<std::int32_t> target_rows;     // (R) the row that predicts, ascending within a pair's three parts
  std::vector<std::int32_t> target_tokens;   // (R) what it should predict
  std::vector<MemberRows> client_targets;    // the same cut of the targets: rows of (R)
  std::vector<MemberRows> client_responses;  // the same cut of `responses`
  std::vector<ResponseRows> responses;       // (2 per pair) chosen, rejected; empty without keep_last_rows
  std::vector<PackedPair> pairs;
  Filling filling = Filling::none;  ///< what it was packed with

  std::int32_t num_rows() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_targets() const { return static_cast<std::int32_t>(target_rows.size()); }
  /// First and one past the last row of pair `i`, where a pair is one segment group.
  std::pair<std::size_t, std::size_t> rows_of_pair(std::size_t i) const {
    const auto group = static_cast<std::size_t>(pairs[i].group);
    const auto first = static_cast<std::size_t>(segment_groups[group]);
    const auto last = static_cast<std::size_t>(segment_groups[group + 1]) - 1;
    return {static_cast<std::size_t>(segments[first].begin), static_cast<std::size_t>(segments[last].end)};
  }
};

struct PackingOptions {
  bool keep_last_rows = true;
  bool share_prefix = true;  ///< false: chosen and rejected as two sequences of their own (tests compare)
  Filling filling = Filling::none;
};

/// The smallest size that is at least n among multiples of 32, from 512 on among multiples of an eighth of the power of
/// two below: little filling, and few sizes.
std::int32_t size_class(std::int32_t n);

/// A pair of one client, to be packed.
struct PairToPack {
  PairId id;
  bool flipped = false;  ///< swaps chosen and rejected
};

/// What one cohort member contributes.
struct MemberPairs {
  std::int32_t slot = 0;
  std::span<const PairToPack> pairs;
};

/// Packs the members' pairs in order into `batch`, whose vectors keep their capacity from call to call. With
/// share_prefix a pair is one segment group; without it two, and nothing is common.
void pack(const PairSet& pairs, std::span<const MemberPairs> members, const PackingOptions& options,
          PackedBatch& batch);

/// Rows that a pair takes when packed.
std::int32_t packed_rows(const PairFile& file, std::size_t pair, const PackingOptions& options);

/// Cuts a list of pairs into runs whose packed rows stay within `max_rows` (a longer single pair is a run of its own):
/// offsets, first 0, last the number of pairs (no pairs: the first alone). Depends on nothing but the pairs, so every
/// rank count cuts alike.
std::vector<std::size_t> cut_by_rows(const PairSet& set, std::span<const PairToPack> pairs,
                                     const PackingOptions& options, std::int32_t max_rows);

}  // namespace fedpdpo
