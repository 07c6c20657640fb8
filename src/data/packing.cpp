// Packing in two passes over the pairs: count, so that every vector is sized once, then fill.
#include "fedpdpo/data/packing.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

using Tokens = std::span<const std::uint32_t>;

std::int32_t length_of(Tokens tokens) { return static_cast<std::int32_t>(tokens.size()); }

// Tokens that both responses begin with; each keeps at least one token of its own.
std::int32_t common_beginning(Tokens a, Tokens b) {
  const std::size_t limit = std::min(a.size(), b.size()) - 1;
  std::size_t count = 0;
  while (count < limit && a[count] == b[count]) ++count;
  return static_cast<std::int32_t>(count);
}

// How many rows and targets a pair has; the one place that knows what the options do to them.
struct PairCount {
  std::int32_t prompt = 0, common = 0, chosen = 0, rejected = 0;  // tokens; the responses without `common`
  std::int64_t rows = 0;

  PairCount(Tokens prompt_tokens, Tokens chosen_tokens, Tokens rejected_tokens, const PackingOptions& options)
      : prompt(length_of(prompt_tokens)),
        common(options.share_prefix ? common_beginning(chosen_tokens, rejected_tokens) : 0),
        chosen(length_of(chosen_tokens) - common),
        rejected(length_of(rejected_tokens) - common) {
    const std::int64_t prefix = std::int64_t{prompt} + common;
    const std::int64_t last_rows = options.keep_last_rows ? 0 : 2;
    rows = (options.share_prefix ? prefix : 2 * prefix) + chosen + rejected - last_rows;
  }
};

// Where the next row, target and segment go.
class BatchWriter {
 public:
  BatchWriter(PackedBatch& batch, const PackingOptions& options) : batch_(batch), options_(options) {}

  std::int32_t row() const { return row_; }
  std::int32_t target() const { return target_; }
  std::int32_t num_responses() const { return static_cast<std::int32_t>(batch_.responses.size()); }

  void shared_pair(Tokens prompt, Tokens chosen, Tokens rejected, std::int32_t common) {
    const std::int32_t begin = row_;
    const std::int32_t prompt_end = begin + length_of(prompt);
    const std::int32_t prefix_end = prompt_end + common;
    const Tokens beginning = chosen.first(static_cast<std::size_t>(common));
    rows(prompt, 0);
    rows(beginning, prompt_end - begin);
    batch_.segments.push_back({begin, prefix_end, begin, begin});
    targets(beginning, prompt_end - 1, prompt_end);
    for (const Tokens response : {chosen, rejected}) {
      const Tokens own = response.subspan(beginning.size());
      const std::int32_t own_begin = row_;
      rows(kept(own), prefix_end - begin);
      if (row_ > own_begin) batch_.segments.push_back({own_begin, row_, begin, prefix_end});
      targets(own, prefix_end - 1, own_begin);
      if (options_.keep_last_rows) batch_.responses.push_back({prompt_end, prefix_end, own_begin, row_});
    }
    end_group();
  }

  /// Rows and targets that stand for nothing, up to these counts, the targets of the last row.
  void fill_up(std::int32_t num_rows, std::int32_t num_targets) {
    check(num_rows > row_, "a filled member has at least one row more than its pairs");
    const std::int32_t begin = row_;
    for (; row_ < num_rows; ++row_) {
      batch_.tokens[static_cast<std::size_t>(row_)] = 0;
      batch_.positions[static_cast<std::size_t>(row_)] = 0;
    }
    batch_.segments.push_back({begin, row_, begin, begin});
    end_group();
    for (; target_ < num_targets; ++target_) {
      batch_.target_tokens[static_cast<std::size_t>(target_)] = 0;
      batch_.target_rows[static_cast<std::size_t>(target_)] = row_ - 1;
    }
  }

  std::int32_t num_groups() const { return static_cast<std::int32_t>(batch_.segment_groups.size()) - 1; }

  void sequence(Tokens prompt, Tokens response) {
    const std::int32_t begin = row_;
    rows(prompt, 0);
    const std::int32_t response_begin = row_;
    rows(kept(response), response_begin - begin);
    batch_.segments.push_back({begin, row_, begin, begin});
    targets(response, response_begin - 1, response_begin);
    if (options_.keep_last_rows) {
      batch_.responses.push_back({response_begin, response_begin, response_begin, row_});
    }
    end_group();
  }

 private:
  Tokens kept(Tokens own) const { return options_.keep_last_rows ? own : own.first(own.size() - 1); }

  void rows(Tokens tokens, std::int32_t first_position) {
    std::int32_t* const token = batch_.tokens.data() + row_;
    std::int32_t* const position = batch_.positions.data() + row_;
    const std::int32_t count = length_of(tokens);
    for (std::int32_t i = 0; i < count; ++i) {
      token[i] = static_cast<std::int32_t>(tokens[static_cast<std::size_t>(i)]);
      position[i] = first_position + i;
    }
    row_ += count;
  }

  // The first token is predicted by row `first`, the following ones by the rows from `next` on.
  void targets(Tokens tokens, std::int32_t first, std::int32_t next) {
    std::int32_t* const token = batch_.target_tokens.data() + target_;
    std::int32_t* const predictor = batch_.target_rows.data() + target_;
    const std::int32_t count = length_of(tokens);
    for (std::int32_t i = 0; i < count; ++i) {
      token[i] = static_cast<std::int32_t>(tokens[static_cast<std::size_t>(i)]);
      predictor[i] = next + i - 1;
    }
    if (count > 0) predictor[0] = first;
    target_ += count;
  }

  void end_group() { batch_.segment_groups.push_back(static_cast<std::int32_t>(batch_.segments.size())); }

  PackedBatch& batch_;
  const PackingOptions& options_;
  std::int32_t row_ = 0;
  std::int32_t target_ = 0;
};

/// Rows and targets of each filled member; zero: as many as its pairs have.
struct MemberSize {
  std::int32_t rows = 0, targets = 0;
};

// First pass: `batch.pairs` complete but for their groups, all other lists empty or sized.
MemberSize count_pairs(const PairSet& set, std::span<const MemberPairs> members, const PackingOptions& options,
                       PackedBatch& batch) {
  std::int64_t num_rows = 0;
  std::int64_t num_targets = 0;
  std::int64_t most_rows = 0, most_targets = 0;
  batch.pairs.clear();
  for (std::size_t member = 0; member < members.size(); ++member) {
    const std::int64_t rows_before = num_rows, targets_before = num_targets;
    for (const PairToPack& pair : members[member].pairs) {
      check(pair.id.file < set.files.size() && pair.id.index < set.files[pair.id.file].size(),
            "a pair to pack is not in the set");
      const PairFile& file = set.files[pair.id.file];
      const Tokens chosen = (pair.flipped ? file.rejected : file.chosen)[pair.id.index];
      const Tokens rejected = (pair.flipped ? file.chosen : file.rejected)[pair.id.index];
      const PairCount count(file.prompt[pair.id.index], chosen, rejected, options);
      PackedPair packed;
      packed.id = pair.id;
      packed.flipped = pair.flipped;
      packed.member = static_cast<std::int32_t>(member);
      packed.target_begin = static_cast<std::int32_t>(num_targets);
      packed.common_end = packed.target_begin + count.common;
      packed.chosen_end = packed.common_end + count.chosen;
      packed.target_end = packed.chosen_end + count.rejected;
      packed.chosen_length = length_of(chosen);
      packed.rejected_length = length_of(rejected);
      num_rows += count.rows;
      num_targets += count.common + count.chosen + count.rejected;
      check(std::max(num_rows, num_targets) <= std::numeric_limits<std::int32_t>::max() / 2,
            "a batch has too many rows");
      batch.pairs.push_back(packed);
    }
    most_rows = std::max(most_rows, num_rows - rows_before);
    most_targets = std::max(most_targets, num_targets - targets_before);
  }
  MemberSize size;
  if (options.filling == Filling::size_classes) {
    size = {size_class(static_cast<std::int32_t>(most_rows) + 1), size_class(static_cast<std::int32_t>(most_targets))};
    num_rows = static_cast<std::int64_t>(members.size()) * size.rows;
    num_targets = static_cast<std::int64_t>(members.size()) * size.targets;
    // Targets of a member begin where those of the one before it end, filling included.
    std::int32_t member = 0, of_pairs = 0, shift = 0;
    for (PackedPair& pair : batch.pairs) {
      for (; member < pair.member; ++member) {
        shift += size.targets - of_pairs;
        of_pairs = 0;
      }
      of_pairs += pair.target_end - pair.target_begin;
      for (std::int32_t* at : {&pair.target_begin, &pair.common_end, &pair.chosen_end, &pair.target_end}) *at += shift;
    }
  }
  batch.tokens.resize(static_cast<std::size_t>(num_rows));
  batch.positions.resize(static_cast<std::size_t>(num_rows));
  batch.target_rows.resize(static_cast<std::size_t>(num_targets));
  batch.target_tokens.resize(static_cast<std::size_t>(num_targets));
  batch.segments.clear();
  batch.segment_groups.assign(1, 0);
  batch.responses.clear();
  batch.clients.clear();
  batch.client_targets.clear();
  batch.client_responses.clear();
  return size;
}

}  // namespace

std::int32_t size_class(std::int32_t n) {
  std::int32_t step = 32;
  while (step * 16 <= n) step *= 2;
  return (n + step - 1) / step * step;
}

void pack(const PairSet& pairs, std::span<const MemberPairs> members, const PackingOptions& options,
          PackedBatch& batch) {
  const MemberSize size = count_pairs(pairs, members, options, batch);
  batch.filling = options.filling;
  BatchWriter writer(batch, options);
  auto packed = batch.pairs.begin();
  for (const MemberPairs& member : members) {
    const std::int32_t first_row = writer.row();
    const std::int32_t first_target = writer.target();
    const std::int32_t first_response = writer.num_responses();
    for (std::size_t i = 0; i < member.pairs.size(); ++i, ++packed) {
      const PairFile& file = pairs.files[packed->id.file];
      packed->group = writer.num_groups();
      const Tokens prompt = file.prompt[packed->id.index];
      const Tokens chosen = (packed->flipped ? file.rejected : file.chosen)[packed->id.index];
      const Tokens rejected = (packed->flipped ? file.chosen : file.rejected)[packed->id.index];
      if (options.share_prefix) {
        writer.shared_pair(prompt, chosen, rejected, packed->common_end - packed->target_begin);
      } else {
        writer.sequence(prompt, chosen);
        writer.sequence(prompt, rejected);
      }
    }
    if (size.rows > 0) writer.fill_up(first_row + size.rows, first_target + size.targets);
    batch.clients.push_back({first_row, writer.row(), member.slot});
    batch.client_targets.push_back({first_target, writer.target(), member.slot});
    batch.client_responses.push_back({first_response, writer.num_responses(), member.slot});
  }
}

std::int32_t packed_rows(const PairFile& file, std::size_t pair, const PackingOptions& options) {
  const PairCount count(file.prompt[pair], file.chosen[pair], file.rejected[pair], options);
  return static_cast<std::int32_t>(count.rows);
}

std::vector<std::size_t> cut_by_rows(const PairSet& set, std::span<const PairToPack> pairs,
                                     const PackingOptions& options, std::int32_t max_rows) {
  std::vector<std::size_t> cuts{0};
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const std::int32_t more = packed_rows(set.files[pairs[i].id.file], pairs[i].id.index, options);
    if (i > cuts.back() && rows + more > max_rows) {
      cuts.push_back(i);
      rows = 0;
    }
    rows += more;
  }
  if (!pairs.empty()) cuts.push_back(pairs.size());
  return cuts;
}

}  // namespace fedpdpo
