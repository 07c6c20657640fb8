// Cuts a plan into tiles and uploads it.
#include <algorithm>
#include <cstring>

#include "cuda/attention_plan.hpp"

namespace fedpdpo::cuda {

PlanUpload::PlanUpload(std::shared_ptr<Device> device)
    : device_(std::move(device)),
      device_segments_(device_),
      device_groups_(device_),
      device_rows_(device_),
      device_query_tiles_(device_),
      device_key_tiles_(device_),
      device_visits_(device_) {}

void PlanUpload::make_tiles() {
  query_tiles_.clear();
  key_tiles_.clear();
  visits_.clear();
  for (std::size_t s = 0; s < segments_.size(); ++s) {
    const Segment& own = segments_[s];
    for (std::int32_t begin = own.begin; begin < own.end; begin += kTileRows) {
      const std::int32_t end = std::min(begin + kTileRows, own.end);
      query_tiles_.push_back({begin, end, own.begin, own.context_begin, own.context_end});
      const auto first_visit = static_cast<std::int32_t>(visits_.size());
      visits_.push_back({begin, own.end, own.begin, own.end});
      // A context lies before its segment: only later segments of the group can attend to these keys.
      for (auto other = s + 1; other < static_cast<std::size_t>(groups_[s].last); ++other) {
        const Segment& segment = segments_[other];
        const bool sees = segment.context_begin < end && begin < segment.context_end;
        if (sees && segment.begin < segment.end)
          visits_.push_back({segment.begin, segment.end, segment.context_begin, segment.context_end});
      }
      key_tiles_.push_back({begin, end, first_visit, static_cast<std::int32_t>(visits_.size())});
    }
  }
  // The longest first, so that the last blocks of a launch are short ones.
  const auto num_keys = [](const QueryTile& t) { return t.context_end - t.context_begin + t.end - t.segment_begin; };
  const auto num_queries = [&](const KeyTile& t) {
    std::int64_t count = 0;
    for (std::int32_t v = t.first_visit; v < t.last_visit; ++v) count += visits_[v].end - visits_[v].begin;
    return count;
  };
  std::ranges::stable_sort(query_tiles_, std::greater<>(), num_keys);
  std::ranges::stable_sort(key_tiles_, std::greater<>(), num_queries);
  const std::size_t most = (rows_.size() + segments_.size() * (kTileRows - 1)) / kTileRows;
  query_tiles_.resize(most);
  key_tiles_.resize(most);
}

DevicePlan PlanUpload::get(const AttentionPlan& plan) {
  const auto same = [](const auto& kept, const auto& given) {
    return kept.size() == given.size() &&
           (given.empty() || std::memcmp(kept.data(), given.data(), given.size_bytes()) == 0);
  };
  if (current_.segments != nullptr && same(segments_, plan.segments) && same(offsets_, plan.group_offsets))
    return current_;
  current_ = {};  // until all is there: memory may end on the way
  segments_.assign(plan.segments.begin(), plan.segments.end());
  offsets_.assign(plan.group_offsets.begin(), plan.group_offsets.end());
  groups_.resize(segments_.size());
  for (std::size_t g = 0; g + 1 < offsets_.size(); ++g)
    for (std::int32_t s = offsets_[g]; s < offsets_[g + 1]; ++s)
      groups_[static_cast<std::size_t>(s)] = {offsets_[g], offsets_[g + 1]};
  rows_.clear();
  for (std::size_t s = 0; s < segments_.size(); ++s)
    rows_.resize(static_cast<std::size_t>(segments_[s].end), static_cast<std::int32_t>(s));
  make_tiles();
  const auto upload = [&](auto& scratch, const auto& host) {
    auto* place = scratch.get(std::max<std::size_t>(host.size(), 1));
    device_->to_device(place, host.data(), host.size() * sizeof(host[0]));
    return place;
  };
  current_ = {upload(device_segments_, segments_),
              upload(device_groups_, groups_),
              upload(device_rows_, rows_),
              upload(device_query_tiles_, query_tiles_),
              upload(device_key_tiles_, key_tiles_),
              upload(device_visits_, visits_),
              static_cast<std::int32_t>(query_tiles_.size())};
  return current_;
}

}  // namespace fedpdpo::cuda
