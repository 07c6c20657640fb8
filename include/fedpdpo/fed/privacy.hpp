// Client-level differential privacy: each client's update is clipped, the server's average gets Gaussian noise, and an
// accountant says what the rounds have cost.
//   D <- D min(1, C / ||D||),  x <- x + sum w_i D_i / W + N(0, s^2 I),  s = noise_multiplier * sensitivity
// McMahan et al., "Learning differentially private recurrent language models", 2018, arXiv 1710.06963. One client moves
// the average by C w_i / W at most where W is fixed beforehand, by 2 C w_i / W where it is the sample's own weight.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fedpdpo {

/// What the user asks for.
struct PrivacyOptions {
  double clip = 0;              ///< C, the largest L2 norm of a client's update; 0: no differential privacy
  double noise_multiplier = 0;  ///< standard deviation of the noise over the sensitivity of the average to one client
  double delta = 1e-5;          ///< the delta that epsilon is told for
};

/// Scales the update of `values` (y) from `base` (x, as long) to a norm of at most `clip`; clip = 0 only measures.
/// Returns the norm before, summed in double from first to last. Results are rounded towards x: measured again, in
/// double, the norm exceeds `clip` by no more than the rounding of that sum, a part of size * 2^-52. Values within the
/// norm, or with a norm that is not finite (which is then returned), stay as they are.
double clip_update(std::span<const float> base, std::span<float> values, double clip);

/// Adds independent N(0, standard_deviation^2) to each value: a pure function of (seed, round, group) and the position
/// in the span, so that all ranks that hold the span draw the same. Private to those only who do not know the seed.
void add_noise(std::span<float> values, double standard_deviation, std::uint64_t seed, int round, int group);

/// Renyi divergence of order alpha > 1 of one step of the Gaussian mechanism over a Poisson sample: every client takes
/// part with probability q = sampling_rate, independently; the noise is sigma = noise_multiplier sensitivities;
/// neighbours differ in one client's presence. Infinite without noise, or where it overflows. Mironov, Talwar and
/// Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019, arXiv 1908.10530, section 3.3. Absolute
/// error of (alpha - 1) times the result about 1e-13.
double gaussian_rdp(double sampling_rate, double noise_multiplier, double alpha);

/// Adds up the Renyi divergence of equal steps over a table of orders: 1.1, 1.2 ... 10.9, 11, 12 ... 64, 128, 256, 512.
/// Its epsilon is proved for Poisson samples; for samples of a fixed size it is customary, but not proved.
class RdpAccountant {
 public:
  /// sampling_rate in [0, 1], noise_multiplier >= 0.
  RdpAccountant(double sampling_rate, double noise_multiplier);

  /// n more rounds.
  void step(int n = 1);
  std::int64_t num_steps() const { return num_steps_; }

  /// The smallest epsilon over the orders at which the steps so far are (epsilon, delta)-differentially private, at
  /// least 0, infinite without noise; 0 < delta < 1. Conversion: Canonne, Kamath and Steinke 2020, arXiv 2004.00010,
  /// proposition 12 (also Balle et al. 2020, arXiv 1905.09982, theorem 21).
  double epsilon(double delta) const { return best(delta).epsilon; }
  /// The order that gives it.
  double best_order(double delta) const { return best(delta).order; }
  /// Epsilon by the older, looser conversion of Mironov 2017, arXiv 1702.07476, proposition 3 (TF Privacy until 2021).
  double epsilon_classic(double delta) const;

 private:
  struct Best {
    double epsilon;
    double order;
  };
  Best best(double delta) const;
  /// Of all steps so far at the i-th order.
  double rdp(std::size_t i) const;

  std::vector<double> orders_;
  std::vector<double> rdp_of_step_;
  std::int64_t num_steps_ = 0;
};

}  // namespace fedpdpo
