// Clipping, noise, and the Renyi accountant of the sampled Gaussian mechanism: rdp = log A_alpha / (alpha - 1), where
//   A_alpha = E_{x ~ N(0, sigma^2)} ((1 - q) + q exp((2 x - 1) / (2 sigma^2)))^alpha,   sigma the noise multiplier.
// A binomial sum for whole alpha, else two binomial series, cut where both parts of the mixture are equal (arXiv
// 1908.10530, section 3.3).
#include "fedpdpo/fed/privacy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/random.hpp"

namespace fedpdpo {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int most_terms = 100000;
constexpr double series_tolerance = 1e-14;

/// sum of sign * exp(log_size), kept relative to the largest term.
class ScaledSum {
 public:
  void add(double log_size, double sign) {
    if (log_size == -infinity) return;
    if (log_size > scale_) {
      sum_ *= std::exp(scale_ - log_size);
      scale_ = log_size;
    }
    sum_ += sign * std::exp(log_size - scale_);
  }
  double log() const { return scale_ + std::log(sum_); }
  /// exp(log_size) as a part of the sum.
  double part(double log_size) const { return std::exp(log_size - scale_) / sum_; }

 private:
  double scale_ = -infinity;
  double sum_ = 0;
};

/// log |binomial(alpha, i)| and its sign for i = 0, 1, ...
class Binomials {
 public:
  explicit Binomials(double alpha) : alpha_(alpha) {}
  double log() const { return log_; }
  double sign() const { return sign_; }
  void next() {
    const double factor = (alpha_ - i_) / (i_ + 1);
    log_ += std::log(std::abs(factor));
    if (factor < 0) sign_ = -sign_;
    ++i_;
  }

 private:
  double alpha_;
  double i_ = 0;
  double log_ = 0;
  double sign_ = 1;
};

/// log(erfc(x) / 2), also where erfc underflows: there by its asymptotic series, to 1e-16.
double log_half_erfc(double x) {
  if (x < 25) return std::log(0.5 * std::erfc(x));
  const double t = -1 / (2 * x * x);
  const double tail = t * (1 + 3 * t * (1 + 5 * t * (1 + 7 * t * (1 + 9 * t * (1 + 11 * t)))));
  return -x * x - std::log(2 * x * std::sqrt(std::numbers::pi)) + std::log1p(tail);
}

double log_moment_whole(double q, double sigma, double alpha) {
  const double log_q = std::log(q), log_rest = std::log1p(-q);
  ScaledSum sum;
  Binomials binomial(alpha);
  for (double i = 0; i <= alpha; ++i, binomial.next())
    sum.add(binomial.log() + i * log_q + (alpha - i) * log_rest + (i * i - i) / (2 * sigma * sigma), 1);
  return sum.log();
}

/// Beyond alpha the terms alternate and fall like i^-(alpha + 2): half of the last one is taken off, and what is left
/// is less than the difference of the last two.
double log_moment_fractional(double q, double sigma, double alpha) {
  const double log_q = std::log(q), log_rest = std::log1p(-q);
  const double cut = sigma * sigma * std::log(1 / q - 1) + 0.5;
  const double width = std::numbers::sqrt2 * sigma;
  ScaledSum sum;
  Binomials binomial(alpha);
  double last_below = infinity, last_above = infinity;
  for (int n = 0; n < most_terms; ++n, binomial.next()) {
    const double i = n, j = alpha - i;
    const double below = binomial.log() + i * log_q + j * log_rest + (i * i - i) / (2 * sigma * sigma) +
                         log_half_erfc((i - cut) / width);
    const double above = binomial.log() + j * log_q + i * log_rest + (j * j - j) / (2 * sigma * sigma) +
                         log_half_erfc((cut - j) / width);
    sum.add(below, binomial.sign());
    sum.add(above, binomial.sign());
    const bool falling = i > alpha + 1 && below < last_below && above < last_above;
    if (falling && sum.part(last_below) - sum.part(below) < series_tolerance &&
        sum.part(last_above) - sum.part(above) < series_tolerance) {
      sum.add(below, -0.5 * binomial.sign());
      sum.add(above, -0.5 * binomial.sign());
      return sum.log();
    }
    last_below = below;
    last_above = above;
  }
  return infinity;  // an order less, never a wrong one
}

std::vector<double> default_orders() {
  std::vector<double> orders;
  for (int tenth = 1; tenth < 100; ++tenth) orders.push_back(1 + tenth / 10.0);
  for (int order = 11; order <= 64; ++order) orders.push_back(order);
  for (int order : {128, 256, 512}) orders.push_back(order);
  return orders;
}

}  // namespace

double clip_update(std::span<const float> base, std::span<float> values, double clip) {
  check(base.size() == values.size(), "clip_update: base and values differ in size");
  check(clip >= 0, "clip_update: the clip is negative");
  double squared = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double difference = static_cast<double>(values[i]) - base[i];
    squared += difference * difference;
  }
  const double norm = std::sqrt(squared);
  if (clip == 0 || !std::isfinite(norm) || norm <= clip) return norm;
  const double factor = clip / norm;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double x = base[i];
    const double difference = factor * (values[i] - x);
    float rounded = static_cast<float>(x + difference);
    if (std::abs(rounded - x) > std::abs(difference)) rounded = std::nextafter(rounded, base[i]);
    values[i] = rounded;
  }
  return norm;
}

void add_noise(std::span<float> values, double standard_deviation, std::uint64_t seed, int round, int group) {
  check(standard_deviation >= 0 && std::isfinite(standard_deviation), "add_noise needs a finite deviation >= 0");
  if (standard_deviation == 0) return;
  RandomStream stream(
      {seed, Purpose::privacy, static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(round), 0});
  for (float& value : values) value = static_cast<float>(value + standard_deviation * stream.normal());
}

double gaussian_rdp(double sampling_rate, double noise_multiplier, double alpha) {
  check(sampling_rate >= 0 && sampling_rate <= 1, "gaussian_rdp: the sampling rate is not in [0, 1]");
  check(noise_multiplier >= 0 && alpha > 1, "gaussian_rdp needs a noise multiplier >= 0 and an order > 1");
  if (sampling_rate == 0) return 0;
  const double whole = alpha / (2 * noise_multiplier * noise_multiplier);
  if (sampling_rate == 1 || !std::isfinite(whole * alpha)) return std::isfinite(whole * alpha) ? whole : infinity;
  const double log_moment = alpha == std::floor(alpha) ? log_moment_whole(sampling_rate, noise_multiplier, alpha)
                                                       : log_moment_fractional(sampling_rate, noise_multiplier, alpha);
  return std::max(0.0, log_moment / (alpha - 1));
}

RdpAccountant::RdpAccountant(double sampling_rate, double noise_multiplier) : orders_(default_orders()) {
  for (double order : orders_) rdp_of_step_.push_back(gaussian_rdp(sampling_rate, noise_multiplier, order));
}

void RdpAccountant::step(int n) {
  check(n >= 0, "RdpAccountant::step: a negative number of steps");
  num_steps_ += n;
}

double RdpAccountant::rdp(std::size_t i) const {
  return num_steps_ == 0 ? 0 : static_cast<double>(num_steps_) * rdp_of_step_[i];
}

RdpAccountant::Best RdpAccountant::best(double delta) const {
  check(delta > 0 && delta < 1, "RdpAccountant: delta is not in (0, 1)");
  Best best{infinity, orders_.front()};
  for (std::size_t i = 0; i < orders_.size(); ++i) {
    const double alpha = orders_[i], divergence = rdp(i);
    double epsilon = divergence - (std::log(delta) + std::log(alpha)) / (alpha - 1) + std::log1p(-1 / alpha);
    // Bretagnolle and Huber 1979: total variation <= sqrt(1 - exp(-KL)), and KL is at most the divergence of any order.
    if (-std::expm1(-divergence) < delta * delta) epsilon = 0;
    if (epsilon < best.epsilon) best = {epsilon, alpha};
  }
  best.epsilon = std::max(0.0, best.epsilon);
  return best;
}

double RdpAccountant::epsilon_classic(double delta) const {
  check(delta > 0 && delta < 1, "RdpAccountant: delta is not in (0, 1)");
  double smallest = infinity;
  for (std::size_t i = 0; i < orders_.size(); ++i)
    smallest = std::min(smallest, rdp(i) - std::log(delta) / (orders_[i] - 1));
  return smallest;
}

}  // namespace fedpdpo
