// Fixed-point terms by branch-free bit arithmetic, so that the loops vectorise on the oldest processors too.
#include "fedpdpo/core/fixed_point.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>

namespace fedpdpo {
namespace {

// A block whose largest term is below 2^-900 rounds to zeros anyway; the bound keeps 2^e and 2^-e normal numbers.
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

inline void add(std::int64_t& sum, std::uint64_t term) {
  sum = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) + term);
}

}  // namespace

float largest_magnitude(std::span<const float> values) {
  std::int32_t peak = 0;  // bits: those of infinity and of NaN are above all others
  for (const float value : values) {
    peak = std::max(peak, static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFFu));
  }
  return std::bit_cast<float>(peak);
}

int fixed_point_exponent(double maximum, int num_terms) {
  if (maximum == 0) return 0;
  int exponent = 0;
  const double fraction = std::frexp(maximum, &exponent);
  int product_exponent = 0;
  std::frexp(fraction * num_terms, &product_exponent);
  return std::min(62 - exponent - product_exponent, largest_exponent);
}

void add_terms(std::span<const float> values, double weight, int exponent, TermCoding coding, std::int64_t* sums) {
  if (coding == TermCoding::float_bits) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      add(sums[i], std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<double>(values[i]) * weight)));
    }
    return;
  }
  const double scale = std::ldexp(1.0, exponent);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double term = static_cast<double>(values[i]) * weight;
    add(sums[i], round_to_integer(term * scale));
  }
}

void round_sums(std::span<const std::int64_t> sums, int exponent, TermCoding coding, float* result) {
  if (coding == TermCoding::float_bits) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
      result[i] = std::bit_cast<float>(static_cast<std::uint32_t>(sums[i]));
    }
    return;
  }
  const double unit = std::ldexp(1.0, -exponent);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    result[i] = static_cast<float>(to_double_odd(static_cast<std::uint64_t>(sums[i])) * unit);
  }
}

}  // namespace fedpdpo
