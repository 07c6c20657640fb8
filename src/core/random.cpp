// Philox4x32-10 and the distributions drawn from it. All conversions from bits to numbers are our own: those of the
// standard library differ between implementations.
#include "fedpdpo/core/random.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

std::uint64_t next_u64(RandomStream& stream) {
  const std::uint64_t high = stream.next_u32();
  return high << 32 | stream.next_u32();
}

// Uniform in (0, 1], so that its logarithm is finite.
double uniform_above_zero(RandomStream& stream) { return 1.0 - stream.uniform(); }

// log of Gamma(shape, 1): Gamma(a) = Gamma(a + 1) U^(1/a) underflows for small a, its logarithm does not.
double log_gamma_variate(RandomStream& stream, double shape) {
  if (shape >= 1) return std::log(stream.gamma(shape));
  const double boosted = std::log(stream.gamma(shape + 1));
  return boosted + std::log(uniform_above_zero(stream)) / shape;
}

}  // namespace

PhiloxKey philox_key(std::uint64_t seed, Purpose purpose) {
  // The seed fills the key, so the purpose goes through the bijection: neighbouring seeds share no stream.
  const PhiloxCounter mixed = philox4x32({static_cast<std::uint32_t>(purpose), 0, 0, 0x66656470u},
                                         {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return {mixed[0], mixed[1]};
}

RandomStream::RandomStream(const StreamId& id)
    : key_(philox_key(id.seed, id.purpose)), counter_{0, id.client, id.round, id.step} {}

std::uint32_t RandomStream::next_u32() {
  if (used_ == 4) {
    check(!exhausted_, "a random stream was drawn beyond its 2^34 numbers");
    block_ = philox4x32(counter_, key_);
    exhausted_ = ++counter_[0] == 0;
    used_ = 0;
  }
  return block_[static_cast<std::size_t>(used_++)];
}

double RandomStream::uniform() { return static_cast<double>(next_u64(*this) >> 11) * 0x1p-53; }

std::uint64_t RandomStream::below(std::uint64_t bound) {
  check(bound > 0, "RandomStream::below(0)");
  // Lemire, "Fast random integer generation in an interval", 2019: the high word of x * bound, where the few x that
  // would make some results more frequent than others are drawn again.
  using Wide = unsigned __int128;
  Wide product = Wide{next_u64(*this)} * bound;
  if (static_cast<std::uint64_t>(product) < bound) {
    const std::uint64_t threshold = (0 - bound) % bound;
    while (static_cast<std::uint64_t>(product) < threshold) product = Wide{next_u64(*this)} * bound;
  }
  return static_cast<std::uint64_t>(product >> 64);
}

double RandomStream::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_normal_;
  }
  const double radius = std::sqrt(-2 * std::log(uniform_above_zero(*this)));
  const double angle = 2 * std::numbers::pi * uniform();
  spare_normal_ = radius * std::sin(angle);
  has_spare_ = true;
  return radius * std::cos(angle);
}

double RandomStream::gamma(double shape) {
  check(shape > 0 && std::isfinite(shape), "RandomStream::gamma needs a finite shape > 0");
  if (shape < 1) {
    const double boosted = gamma(shape + 1);
    return boosted * std::pow(uniform_above_zero(*this), 1 / shape);
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  while (true) {
    const double x = normal();
    const double root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    const double u = uniform_above_zero(*this);
    if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
  }
}

std::vector<double> RandomStream::dirichlet(double alpha, std::size_t dimension) {
  check(alpha > 0 && std::isfinite(alpha), "RandomStream::dirichlet needs a finite alpha > 0");
  check(dimension > 0, "RandomStream::dirichlet needs a dimension > 0");
  const double shape = std::max(alpha, 1e-300);  // below it even the logarithms overflow
  std::vector<double> proportions(dimension);
  for (double& value : proportions) value = log_gamma_variate(*this, shape);
  const double largest = *std::max_element(proportions.begin(), proportions.end());
  for (double& value : proportions) value = std::exp(value - largest);
  const double sum = std::accumulate(proportions.begin(), proportions.end(), 0.0);
  for (double& value : proportions) value /= sum;
  return proportions;
}

std::vector<std::uint32_t> RandomStream::permutation(std::uint32_t n) {
  std::vector<std::uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  for (std::uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[below(i)]);
  return order;
}

}  // namespace fedpdpo
