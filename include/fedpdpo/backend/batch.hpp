// How a packed batch is cut: plain structs that both the packer and the backends use.
#pragma once

#include <cstdint>
#include <span>

namespace fedpdpo {

/// Query rows [begin, end) attend causally to themselves and fully to rows [context_begin, context_end).
struct Segment {
  std::int32_t begin = 0, end = 0;
  std::int32_t context_begin = 0, context_end = 0;
};

/// Host copy of a batch's attention structure; segments of one group attend to nothing outside it. Segments follow one
/// another and cover all rows (they may be empty); a context lies before its segment, within its group.
struct AttentionPlan {
  std::span<const Segment> segments;
  std::span<const std::int32_t> group_offsets;  ///< (groups + 1) into segments
};

/// Rows [begin, end) of a matrix belong to the cohort member whose parameters lie at `slot`. Members of one call come
/// in row order and do not overlap; each has a slot of its own.
struct MemberRows {
  std::int32_t begin = 0, end = 0;
  std::int32_t slot = 0;
};

}  // namespace fedpdpo
