// Exact sums on the host; their arithmetic is core/fixed_point.hpp's.
#include "fedpdpo/comm/exact_sum.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

// Rounding is monotone: this is the largest of the rounded products, infinite or NaN if one of them is not finite.
double weighted_peak(float peak, double weight) { return static_cast<double>(peak) * std::abs(weight); }

}  // namespace

std::vector<std::size_t> checked_blocks(std::vector<std::size_t> block_offsets) {
  check(!block_offsets.empty() && block_offsets.front() == 0 &&
            std::is_sorted(block_offsets.begin(), block_offsets.end()),
        "block offsets begin with 0 and rise");
  return block_offsets;
}

SumScales::SumScales(std::size_t num_blocks, int num_terms)
    : num_terms_(num_terms), maxima_(num_blocks), exponents_(num_blocks) {
  check(num_terms >= 0, "the number of terms is not negative");
}

bool SumScales::observe(std::span<const float> peaks, double weight) {
  check(!agreed_, "observe() comes before agree()");
  check(peaks.size() == maxima_.size(), "a peak for every block");
  if (!std::isfinite(weight)) return false;
  for (const float peak : peaks) {
    if (!std::isfinite(weighted_peak(peak, weight))) return false;
  }
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    maxima_[block] = std::max(maxima_[block], weighted_peak(peaks[block], weight));
  }
  ++num_observed_;
  return true;
}

void SumScales::agree(const Communicator& group) {
  check(!agreed_, "agree() comes once for each sum");
  group.max(std::span(maxima_));
  std::int64_t total = num_observed_;
  group.sum(std::span(&total, 1));
  check(total <= num_terms_, "more contributions than the sum was made for");
  coding_ = total == 1 ? TermCoding::float_bits : TermCoding::fixed_point;
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    exponents_[block] = fixed_point_exponent(maxima_[block], num_terms_);
  }
  agreed_ = true;
}

bool SumScales::covers(std::size_t block, float peak, double weight) const {
  return weighted_peak(peak, weight) <= maxima_[block];
}

void SumScales::restart() {
  std::fill(maxima_.begin(), maxima_.end(), 0.0);
  num_observed_ = 0;
  agreed_ = false;
}

ExactSum::ExactSum(std::vector<std::size_t> block_offsets, int num_terms)
    : block_offsets_(checked_blocks(std::move(block_offsets))),
      scales_(num_blocks(), num_terms),
      peaks_(num_blocks()),
      sums_(block_offsets_.back()) {}

bool ExactSum::observe(std::span<const float> values, double weight) {
  check(values.size() == sums_.size(), "a contribution has the sum's length");
  for (std::size_t block = 0; block < num_blocks(); ++block) {
    peaks_[block] = largest_magnitude(values.subspan(block_offsets_[block], length(block)));
  }
  return scales_.observe(peaks_, weight);
}

void ExactSum::add(std::span<const float> values, double weight) {
  check(scales_.agreed(), "add() comes after agree()");
  check(values.size() == sums_.size(), "a contribution has the sum's length");
  check(num_added_ < scales_.num_observed(), "add() got a contribution that was not observed");
  for (std::size_t block = 0; block < num_blocks(); ++block) {
    const std::size_t begin = block_offsets_[block];
    const std::span<const float> part = values.subspan(begin, length(block));
    check(scales_.covers(block, largest_magnitude(part), weight), "add() got a contribution that was not observed");
    add_terms(part, weight, scales_.exponents()[block], scales_.coding(), sums_.data() + begin);
  }
  ++num_added_;
}

void ExactSum::reduce(const Communicator& group, std::span<float> result) {
  check(scales_.agreed(), "reduce() comes after agree()");
  check(result.size() == sums_.size(), "the result has the sum's length");
  check(num_added_ == scales_.num_observed(), "every observed contribution is added once");
  group.sum(std::span(sums_));
  for (std::size_t block = 0; block < num_blocks(); ++block) {
    const std::size_t begin = block_offsets_[block];
    round_sums(std::span(sums_).subspan(begin, length(block)), scales_.exponents()[block], scales_.coding(),
               result.data() + begin);
  }
  scales_.restart();
  std::fill(sums_.begin(), sums_.end(), 0);
  num_added_ = 0;
}

FastSum::FastSum(std::size_t length) : sums_(length) {}

void FastSum::add(std::span<const float> values, double weight) {
  check(values.size() == sums_.size(), "a contribution has the sum's length");
  for (std::size_t i = 0; i < values.size(); ++i) {
    sums_[i] += static_cast<float>(static_cast<double>(values[i]) * weight);
  }
}

void FastSum::reduce(const Communicator& group, std::span<float> result) {
  check(result.size() == sums_.size(), "the result has the sum's length");
  group.sum(std::span(sums_));
  std::copy(sums_.begin(), sums_.end(), result.begin());
  std::fill(sums_.begin(), sums_.end(), 0.0f);
}

}  // namespace fedpdpo
