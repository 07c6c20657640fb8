// Series of a run.
#include "fedpdpo/record/history.hpp"

#include <limits>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

Series& History::define(std::string_view path, std::size_t width, std::string_view units,
                        std::string_view description) {
  check(path.starts_with('/') && width > 0, "a series needs a path that begins with '/' and a width");
  const auto found = series_.find(path);
  if (found != series_.end()) {
    check(found->second.width == width, "a series defined again with another width: " + std::string(path));
    return found->second;
  }
  std::vector<double> values(num_rows_ * width, std::numeric_limits<double>::quiet_NaN());
  return series_
      .emplace(std::string(path), Series{std::string(units), std::string(description), width, std::move(values)})
      .first->second;
}

Series& History::at(std::string_view path) {
  const auto found = series_.find(path);
  check(found != series_.end(), "no such series: " + std::string(path));
  return found->second;
}

}  // namespace fedpdpo
