// Weighted sums over clients whose result does not depend on the number of ranks, on placement or on the order of
// reduction: every contribution is rounded once to a 64-bit fixed-point number, and integer addition is associative.
//
// The vector is cut into blocks (a parameter tensor each). For a block the ranks agree by MPI_MAX on
// M = max over clients |w_i y_i|, the product rounded to double; the scale is 2^s with s the largest exponent for which
// num_terms * M * 2^s < 2^62 (at most 1000: smaller M vanish in float). Rounding error of the sum: at most
// num_terms * 2^-(s+1), that is about M * num_terms^2 * 2^-62, and then that of one rounding to float. With one term
// the sum is that term, w y rounded to float, bit for bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

/// For each sum: observe() every contribution of this rank, agree(), add() the same ones, reduce(). Then it is as new.
class ExactSum {
 public:
  /// `block_offsets` begins with 0 and ends with the vector's length; `num_terms` is the number of contributions
  /// over all ranks, the same on every rank (more is allowed, and costs precision).
  ExactSum(std::vector<std::size_t> block_offsets, int num_terms);

  /// First pass, for each contribution of this rank. False (and the term is not counted: do not add it) if a value or
  /// its product with the weight is not finite.
  bool observe(std::span<const float> values, double weight);
  /// Collective: fixes the scales. Every rank of the group calls it, also one without contributions.
  void agree(const Communicator& group);
  /// Second pass, for the same contributions.
  void add(std::span<const float> values, double weight);
  /// Collective: the sum, rounded once to float, the same bits on every rank; zeros where there was no contribution.
  void reduce(const Communicator& group, std::span<float> result);

 private:
  void start();

  std::vector<std::size_t> block_offsets_;
  int num_terms_;
  std::vector<double> maxima_;
  std::vector<double> candidates_;
  std::vector<int> exponents_;
  std::vector<std::int64_t> sums_;
  int num_observed_ = 0;
  int num_added_ = 0;
  bool agreed_ = false;
  bool single_term_ = false;
};

/// The `fast` counterpart: accumulates in float and leaves the order of reduction to MPI. reduce() leaves it as new.
class FastSum {
 public:
  explicit FastSum(std::size_t length);
  void add(std::span<const float> values, double weight);
  void reduce(const Communicator& group, std::span<float> result);

 private:
  std::vector<float> sums_;
};

}  // namespace fedpdpo
