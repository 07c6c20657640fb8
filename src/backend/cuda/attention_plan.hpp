// An attention plan as kernels read it, in device memory: by row for the kernels that take a row a warp, and cut into
// tiles for those that multiply matrices. Tiles begin at multiples of 64 rows of their segment, so that what is summed
// for a row, and in which order, depends on its group alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/device.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

inline constexpr std::int32_t kTileRows = 64;

/// First and one past the last segment of a group.
struct SegmentRange {
  std::int32_t first, last;
};

/// At most kTileRows query rows [begin, end) of a segment. Its keys are numbered: the context's rows, then the rows of
/// the segment from its beginning. Without rows: nothing to do.
struct QueryTile {
  std::int32_t begin, end, segment_begin, context_begin, context_end;
};

/// At most kTileRows key rows [begin, end) of a segment, and who attends to them: visits [first_visit, last_visit), in
/// the order of their rows.
struct KeyTile {
  std::int32_t begin, end, first_visit, last_visit;
};

/// Query rows [begin, end) of a segment attend to those of the key rows [key_begin, key_end) that are not behind them.
struct Visit {
  std::int32_t begin, end, key_begin, key_end;
};

struct DevicePlan {
  const Segment* segments = nullptr;
  const SegmentRange* groups = nullptr;          ///< by segment: the segments of its group
  const std::int32_t* segment_of_row = nullptr;  ///< (T)
  const QueryTile* query_tiles = nullptr;        ///< (num_tiles), those with the most keys first
  const KeyTile* key_tiles = nullptr;            ///< (num_tiles), those with the most queries first
  const Visit* visits = nullptr;
  /// The most that T rows in that many segments can need; the rest has no rows. So the grid of a launch is the same for
  /// all plans of that size.
  std::int32_t num_tiles = 0;
};

/// Uploads a plan when it differs from the last one: a batch's plan serves all layers, forward and backward.
class PlanUpload {
 public:
  explicit PlanUpload(std::shared_ptr<Device> device);
  DevicePlan get(const AttentionPlan& plan);

 private:
  void make_tiles();

  std::shared_ptr<Device> device_;
  std::vector<Segment> segments_;
  std::vector<std::int32_t> offsets_;
  std::vector<SegmentRange> groups_;
  std::vector<std::int32_t> rows_;
  std::vector<QueryTile> query_tiles_;
  std::vector<KeyTile> key_tiles_;
  std::vector<Visit> visits_;
  Scratch<Segment> device_segments_;
  Scratch<SegmentRange> device_groups_;
  Scratch<std::int32_t> device_rows_;
  Scratch<QueryTile> device_query_tiles_;
  Scratch<KeyTile> device_key_tiles_;
  Scratch<Visit> device_visits_;
  DevicePlan current_;
};

}  // namespace fedpdpo::cuda
