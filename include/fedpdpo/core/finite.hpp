// Whether numbers are neither infinite nor NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

namespace fedpdpo {

inline bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

}  // namespace fedpdpo
