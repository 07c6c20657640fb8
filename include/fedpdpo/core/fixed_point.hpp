// The arithmetic of exact sums. A term w y, one product in double, becomes an integer: times 2^e, rounded to nearest
// with ties to even. Integers are added modulo 2^64, which e keeps from ever wrapping, and the sum is rounded once to
// float. Every backend gives these bits.
#pragma once

#include <cstdint>
#include <span>

namespace fedpdpo {

/// What the 64-bit numbers of a sum are.
enum class TermCoding : std::uint8_t {
  fixed_point,  ///< multiples of 2^-e, e of the number's block
  float_bits,   ///< there is one term in all: the bits of w y rounded to float; no other term is added to it
};

/// The largest magnitude; infinite or NaN if a value is not finite, 0 without values.
float largest_magnitude(std::span<const float> values);

/// The largest e for which num_terms * maximum * 2^e < 2^62, at most 1000 (smaller terms vanish in float); 0 for a
/// maximum of 0. `maximum` is of |w y| over all terms and finite.
int fixed_point_exponent(double maximum, int num_terms);

/// sums[i] += the term of values[i].
void add_terms(std::span<const float> values, double weight, int exponent, TermCoding coding, std::int64_t* sums);

/// result[i] = sums[i] as the nearest float.
void round_sums(std::span<const std::int64_t> sums, int exponent, TermCoding coding, float* result);

}  // namespace fedpdpo
