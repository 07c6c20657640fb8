// Fixed-point sums. A contribution is one double product w * y, times 2^s, rounded to the nearest integer (ties to
// even); integers are added modulo 2^64, which the scale keeps from ever wrapping. The loops are branch-free bit
// arithmetic, so that they vectorise on the oldest processors too.
#include "fedpdpo/comm/exact_sum.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

// A block whose largest term is below 2^-900 rounds to zeros anyway; the bound keeps 2^s and 2^-s normal numbers.
constexpr int largest_exponent = 1000;

// Adding it to |x| < 2^51 leaves round(x) in the low bits.
constexpr double magic = 0x1.8p52;

// |x| < 2^62 to the nearest integer: a multiple of 2^31 nearest to x, and what is left of x, which is exact.
inline std::uint64_t round_to_integer(double x) {
  const double high = x * 0x1p-31 + magic;
  const double low = (x - (high - magic) * 0x1p31) + magic;
  return ((std::bit_cast<std::uint64_t>(high) - std::bit_cast<std::uint64_t>(magic)) << 31) +
         (std::bit_cast<std::uint64_t>(low) - std::bit_cast<std::uint64_t>(magic));
}

// An integer to double, rounded to odd: a later rounding to float is then as if it were the only one (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
inline double to_double_odd(std::uint64_t integer) {
  const std::uint64_t shifted = integer ^ 0x8000000000000000u;  // + 2^63
  const double high = std::bit_cast<double>(0x4530000000000000u | shifted >> 32) - (0x1p84 + 0x1p63);
  const double low = std::bit_cast<double>(0x4330000000000000u | (shifted & 0xFFFFFFFFu)) - 0x1p52;
  const double nearest = high + low;
  const double error = low - (nearest - high);
  const auto bits = std::bit_cast<std::uint64_t>(nearest);
  // The odd neighbour lies towards the error: one bit up if it has the sign of the value, else one down.
  const auto error_bits = std::bit_cast<std::uint64_t>(error);
  const std::uint64_t opposite = (bits ^ error_bits) >> 63;
  const std::uint64_t inexact = ((error_bits << 1) | (0 - (error_bits << 1))) >> 63;
  const std::uint64_t step = inexact & ~bits;
  return std::bit_cast<double>(bits + step - 2 * (step & opposite));
}

// Bits of the largest magnitude; at least those of infinity if a value is not finite.
std::int32_t peak_bits(std::span<const float> values) {
  std::int32_t peak = 0;
  for (const float value : values) {
    peak = std::max(peak, static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu));
  }
  return peak;
}

// Rounding is monotone: this is the largest of the rounded products, infinite or NaN if one of them is not finite.
double weighted_peak(std::span<const float> values, double weight) {
  return static_cast<double>(std::bit_cast<float>(peak_bits(values))) * std::abs(weight);
}

int scale_exponent(double maximum, int num_terms) {
  if (maximum == 0) return 0;
  int exponent = 0;
  const double fraction = std::frexp(maximum, &exponent);
  int product_exponent = 0;
  std::frexp(fraction * num_terms, &product_exponent);
  return std::min(62 - exponent - product_exponent, largest_exponent);
}

void add_scaled(std::span<const float> values, double weight, double scale, std::int64_t* sums) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double term = static_cast<double>(values[i]) * weight;
    sums[i] = static_cast<std::int64_t>(static_cast<std::uint64_t>(sums[i]) + round_to_integer(term * scale));
  }
}

void put_rounded(std::span<const std::int64_t> sums, double unit, float* result) {
  for (std::size_t i = 0; i < sums.size(); ++i) {
    result[i] = static_cast<float>(to_double_odd(static_cast<std::uint64_t>(sums[i])) * unit);
  }
}

void put_bits(std::span<const float> values, double weight, std::int64_t* sums) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    sums[i] = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<double>(values[i]) * weight));
  }
}

}  // namespace

ExactSum::ExactSum(std::vector<std::size_t> block_offsets, int num_terms)
    : block_offsets_(std::move(block_offsets)), num_terms_(num_terms) {
  check(!block_offsets_.empty() && block_offsets_.front() == 0 &&
            std::is_sorted(block_offsets_.begin(), block_offsets_.end()),
        "block offsets begin with 0 and rise");
  check(num_terms >= 0, "the number of terms is not negative");
  const std::size_t num_blocks = block_offsets_.size() - 1;
  maxima_.resize(num_blocks);
  candidates_.resize(num_blocks);
  exponents_.resize(num_blocks);
  sums_.resize(block_offsets_.back());
}

bool ExactSum::observe(std::span<const float> values, double weight) {
  check(!agreed_, "observe() comes before agree()");
  check(values.size() == sums_.size(), "a contribution has the sum's length");
  if (!std::isfinite(weight)) return false;
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    const std::size_t begin = block_offsets_[block];
    candidates_[block] = weighted_peak(values.subspan(begin, block_offsets_[block + 1] - begin), weight);
    if (!std::isfinite(candidates_[block])) return false;
  }
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    maxima_[block] = std::max(maxima_[block], candidates_[block]);
  }
  ++num_observed_;
  return true;
}

void ExactSum::agree(const Communicator& group) {
  check(!agreed_, "agree() comes once for each sum");
  group.max(std::span(maxima_));
  std::int64_t total = num_observed_;
  group.sum(std::span(&total, 1));
  check(total <= num_terms_, "more contributions than the sum was made for");
  single_term_ = total == 1;
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    exponents_[block] = scale_exponent(maxima_[block], num_terms_);
  }
  agreed_ = true;
}

void ExactSum::add(std::span<const float> values, double weight) {
  check(agreed_, "add() comes after agree()");
  check(values.size() == sums_.size(), "a contribution has the sum's length");
  check(num_added_ < num_observed_, "add() got a contribution that was not observed");
  for (std::size_t block = 0; block < maxima_.size(); ++block) {
    const std::size_t begin = block_offsets_[block];
    const std::span<const float> part = values.subspan(begin, block_offsets_[block + 1] - begin);
    check(weighted_peak(part, weight) <= maxima_[block], "add() got a contribution that was not observed");
    if (single_term_) {
      put_bits(part, weight, sums_.data() + begin);
    } else {
      add_scaled(part, weight, std::ldexp(1.0, exponents_[block]), sums_.data() + begin);
    }
  }
  ++num_added_;
}

void ExactSum::reduce(const Communicator& group, std::span<float> result) {
  check(agreed_, "reduce() comes after agree()");
  check(result.size() == sums_.size(), "the result has the sum's length");
  check(num_added_ == num_observed_, "every observed contribution is added once");
  group.sum(std::span(sums_));
  if (single_term_) {
    for (std::size_t i = 0; i < result.size(); ++i) {
      result[i] = std::bit_cast<float>(static_cast<std::uint32_t>(sums_[i]));
    }
  } else {
    for (std::size_t block = 0; block < maxima_.size(); ++block) {
      const std::size_t begin = block_offsets_[block];
      put_rounded(std::span(sums_).subspan(begin, block_offsets_[block + 1] - begin),
                  std::ldexp(1.0, -exponents_[block]), result.data() + begin);
    }
  }
  start();
}

void ExactSum::start() {
  std::fill(maxima_.begin(), maxima_.end(), 0.0);
  std::fill(sums_.begin(), sums_.end(), 0);
  num_observed_ = 0;
  num_added_ = 0;
  agreed_ = false;
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
