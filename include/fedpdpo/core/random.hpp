// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A stream is named by (seed, purpose, client, round, step), never by rank or thread, so that every
// placement of clients on ranks draws the same numbers.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace fedpdpo {

/// What the numbers are for; a part of the key, so that streams of different purpose are independent.
enum class Purpose : std::uint32_t {
  lora_init = 1,
  module_init,
  partition,
  flips,
  participation,
  batches,
  dropout,
  noise,
  bench,
  test,
  privacy,
  new_clients,
};

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// The bijection itself: ten rounds. Device code calls it, too.
constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product_0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t product_1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(product_1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product_1),
               static_cast<std::uint32_t>(product_0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product_0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// Names one stream.
struct StreamId {
  std::uint64_t seed = 0;
  Purpose purpose = Purpose::test;
  std::uint32_t client = 0;
  std::uint32_t round = 0;
  std::uint32_t step = 0;
};

/// The Philox key of (seed, purpose); kernels that draw by index use it directly.
PhiloxKey philox_key(std::uint64_t seed, Purpose purpose);

/// A sequence of up to 2^34 32-bit numbers, a pure function of its StreamId.
class RandomStream {
 public:
  explicit RandomStream(const StreamId& id);

  std::uint32_t next_u32();
  /// Uniform in [0, 1) with 53 bits.
  double uniform();
  /// Uniform in {0, ..., bound - 1} without bias; bound > 0.
  std::uint64_t below(std::uint64_t bound);
  /// Standard normal (Box-Muller).
  double normal();
  /// Gamma(shape, 1), shape > 0 (Marsaglia and Tsang 2000; shape < 1 by boosting).
  double gamma(double shape);
  /// Proportions that sum to 1: Dirichlet(alpha, ..., alpha) of the given dimension, computed in logs where
  /// alpha is small, so that it never divides zero by zero.
  std::vector<double> dirichlet(double alpha, std::size_t dimension);
  /// A uniform permutation of {0, ..., n - 1} (Fisher-Yates).
  std::vector<std::uint32_t> permutation(std::uint32_t n);

 private:
  PhiloxKey key_;
  PhiloxCounter counter_;
  PhiloxCounter block_{};
  int used_ = 4;
  double spare_normal_ = 0;
  bool has_spare_ = false;
  bool exhausted_ = false;
};

}  // namespace fedpdpo
