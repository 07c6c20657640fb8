// What a failed comparison says, so that a kernel's fault can be found from the log alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>

#include "reference.hpp"

namespace fedpdpo {

/// Of the columns [begin, end): how many elements are further from what is expected than `tolerance` of its root mean
/// square, between which rows and columns they lie, how many are not finite, and the worst with both numbers.
inline std::string where_it_differs(const reference::Matrix& expected, const reference::Matrix& found, double tolerance,
                                    std::int64_t begin = 0, std::int64_t end = -1) {
  if (end < 0) end = expected.cols;
  double squares = 0;
  for (std::int64_t i = 0; i < expected.rows; ++i)
    for (std::int64_t j = begin; j < end; ++j) squares += expected(i, j) * expected(i, j);
  const std::int64_t size = expected.rows * (end - begin);
  const double usual = std::sqrt(squares / static_cast<double>(std::max<std::int64_t>(size, 1)));
  std::int64_t beyond = 0, not_finite = 0, rows[2] = {expected.rows, 0}, cols[2] = {end, 0}, worst[2] = {0, begin};
  double largest = -1;
  for (std::int64_t i = 0; i < expected.rows; ++i) {
    for (std::int64_t j = begin; j < end; ++j) {
      const double error = std::abs(found(i, j) - expected(i, j));
      const bool finite = std::isfinite(found(i, j));
      if (finite && error <= tolerance * usual) continue;
      ++beyond;
      not_finite += finite ? 0 : 1;
      rows[0] = std::min(rows[0], i), rows[1] = std::max(rows[1], i);
      cols[0] = std::min(cols[0], j), cols[1] = std::max(cols[1], j);
      if (finite ? error > largest : std::isfinite(largest)) {
        largest = finite ? error : INFINITY;  // the first that is not finite counts as the worst
        worst[0] = i, worst[1] = j;
      }
    }
  }
  std::ostringstream text;
  text << "(" << expected.rows << ", " << expected.cols << "), columns " << begin << " to " << end - 1 << ": " << beyond
       << " of " << size << " elements beyond " << tolerance << " of the usual " << usual;
  if (beyond > 0)
    text << ", " << not_finite << " of them not finite, in rows " << rows[0] << " to " << rows[1] << " and columns "
         << cols[0] << " to " << cols[1] << "; the worst at (" << worst[0] << ", " << worst[1] << "): expected "
         << expected(worst[0], worst[1]) << ", found " << found(worst[0], worst[1]);
  return text.str();
}

}  // namespace fedpdpo
