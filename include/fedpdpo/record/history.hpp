// The numbers of a run: named series over rounds, or over rounds and clients or layers, NaN where nothing was
// recorded. Row 0 is the state before training. Kept on rank 0, written to run.h5, carried by checkpoints.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fedpdpo {

struct Series {
  std::string units;
  std::string description;
  std::size_t width = 1;       ///< 1: (R + 1), but (R + 1, 1) below /clients; else (R + 1, width)
  std::vector<double> values;  ///< row-major

  std::span<double> row(std::size_t round) { return std::span(values).subspan(round * width, width); }
  std::span<const double> row(std::size_t round) const { return std::span(values).subspan(round * width, width); }
};

class History {
 public:
  explicit History(int num_rounds) : num_rows_(static_cast<std::size_t>(num_rounds) + 1) {}

  /// Adds a series of the given path below the file's root, e.g. "/clients/test/after/accuracy"; one of that path
  /// that exists is returned as it is (its width must agree). References stay valid.
  Series& define(std::string_view path, std::size_t width, std::string_view units, std::string_view description);
  Series& at(std::string_view path);
  const std::map<std::string, Series, std::less<>>& series() const { return series_; }
  std::size_t num_rows() const { return num_rows_; }

 private:
  std::size_t num_rows_;
  std::map<std::string, Series, std::less<>> series_;
};

}  // namespace fedpdpo
