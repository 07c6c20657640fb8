// Attention plans that tests of attention make.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

struct TestPlan {
  std::vector<Segment> segments;
  std::vector<std::int32_t> offsets{0};

  AttentionPlan view() const { return {segments, offsets}; }
  std::int64_t rows() const { return segments.empty() ? 0 : segments.back().end; }

  /// Groups of [prefix | branch | branch].
  static TestPlan pairs(const std::vector<std::array<std::int32_t, 3>>& lengths) {
    TestPlan plan;
    std::int32_t row = 0;
    for (const auto& [prefix, first, second] : lengths) {
      const std::int32_t begin = row, end = row + prefix;
      plan.segments.push_back({begin, end, begin, begin});
      plan.segments.push_back({end, end + first, begin, end});
      plan.segments.push_back({end + first, end + first + second, begin, end});
      plan.offsets.push_back(static_cast<std::int32_t>(plan.segments.size()));
      row = end + first + second;
    }
    return plan;
  }
};

inline AttentionShape test_heads(int num_heads, int num_kv_heads, int head_dim) {
  return {num_heads, num_kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

}  // namespace fedpdpo
