// Weighted sums over clients whose result does not depend on the number of ranks, on placement or on the order of
// reduction: every contribution is rounded once to a 64-bit fixed-point number, and integer addition is associative.
//
// The vector is cut into blocks (a parameter tensor each). For a block the ranks agree by MPI_MAX on
// M = max over clients |w_i y_i|, the product rounded to double; the scale is 2^e with e the largest exponent for which
// num_terms * M * 2^e < 2^62 (core/fixed_point.hpp). Rounding error of the sum: at most num_terms * 2^-(e+1), that is
// about M * num_terms^2 * 2^-62, and then that of one rounding to float. With one term the sum is that term, w y
// rounded to float, bit for bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/core/fixed_point.hpp"

namespace fedpdpo {

/// The scales of an exact sum, a block each, agreed over the ranks. For each sum: observe() every contribution of this
/// rank, then agree().
class SumScales {
 public:
  /// `num_terms` is the number of contributions over all ranks, the same on every rank (more is allowed, and costs
  /// precision).
  SumScales(std::size_t num_blocks, int num_terms);

  /// The largest magnitude of every block of a contribution. False (and the term is not counted: do not add it) if one
  /// of them, or its product with the weight, is not finite.
  bool observe(std::span<const float> peaks, double weight);
  /// Collective. Every rank of the group calls it, also one without contributions.
  void agree(const Communicator& group);
  bool agreed() const { return agreed_; }
  int num_observed() const { return num_observed_; }
  /// Whether a contribution with this peak in this block may be added.
  bool covers(std::size_t block, float peak, double weight) const;
  std::span<const std::int32_t> exponents() const { return exponents_; }
  TermCoding coding() const { return coding_; }
  void restart();

 private:
  int num_terms_;
  std::vector<double> maxima_;
  std::vector<std::int32_t> exponents_;
  int num_observed_ = 0;
  bool agreed_ = false;
  TermCoding coding_ = TermCoding::fixed_point;
};

/// On the host. For each sum: observe() every contribution of this rank, agree(), add() the same ones, reduce(). Then
/// it is as new.
class ExactSum {
 public:
  /// `block_offsets` begins with 0 and ends with the vector's length; `num_terms` as in SumScales.
  ExactSum(std::vector<std::size_t> block_offsets, int num_terms);

  /// First pass, for each contribution of this rank. False (and the term is not counted: do not add it) if a value or
  /// its product with the weight is not finite.
  bool observe(std::span<const float> values, double weight);
  /// Collective: fixes the scales. Every rank of the group calls it, also one without contributions.
  void agree(const Communicator& group) { scales_.agree(group); }
  /// Second pass, for the same contributions.
  void add(std::span<const float> values, double weight);
  /// Collective: the sum, rounded once to float, the same bits on every rank; zeros where there was no contribution.
  void reduce(const Communicator& group, std::span<float> result);

 private:
  std::size_t num_blocks() const { return block_offsets_.size() - 1; }
  std::size_t length(std::size_t block) const { return block_offsets_[block + 1] - block_offsets_[block]; }

  std::vector<std::size_t> block_offsets_;
  SumScales scales_;
  std::vector<float> peaks_;
  std::vector<std::int64_t> sums_;
  int num_added_ = 0;
};

/// The offsets themselves, once it is checked that they begin with 0 and rise.
std::vector<std::size_t> checked_blocks(std::vector<std::size_t> block_offsets);

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
