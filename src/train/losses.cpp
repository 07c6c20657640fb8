// The losses (golden values: tests/golden/golden_losses.json). log sigmoid and its slope are computed without overflow.
#include "fedpdpo/train/losses.hpp"

#include <array>
#include <cmath>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

double log_sigmoid(double x) { return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x)); }
double sigmoid(double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }

/// A function of one margin: value and derivative.
struct Curve {
  double value = 0, slope = 0;
};

Curve negative_log_sigmoid(double m) { return {-log_sigmoid(m), -sigmoid(-m)}; }

Curve margin_loss(const LossOptions& o, double m) {
  if (o.kind == "dpo") return negative_log_sigmoid(m);
  if (o.kind == "hinge") return m < 1 ? Curve{1 - m, -1} : Curve{0, 0};
  const Curve right = negative_log_sigmoid(m), wrong = negative_log_sigmoid(-m);
  const double e = o.label_smoothing;
  // Mitchell 2023 (cDPO): the expected loss under label noise e.
  if (o.kind == "cdpo") return {(1 - e) * right.value + e * wrong.value, (1 - e) * right.slope - e * wrong.slope};
  // Chowdhury et al. 2024 (rDPO): its unbiased counterpart.
  if (o.kind == "robust")
    return {((1 - e) * right.value - e * wrong.value) / (1 - 2 * e),
            ((1 - e) * right.slope + e * wrong.slope) / (1 - 2 * e)};
  contract_violation("loss", "unknown loss " + o.kind, std::source_location::current());
}

/// A number of each response.
struct Both {
  double chosen, rejected;
};

/// log pi - log ref.
Both log_ratios(const LossOptions& o, const PairScores& s) {
  if (o.reference_free) return {s.log_prob_chosen, s.log_prob_rejected};
  return {s.log_prob_chosen - s.reference_chosen, s.log_prob_rejected - s.reference_rejected};
}

/// What log-ratios are divided by in m_i.
Both divisors(const LossOptions& o, const PairScores& s) {
  if (!o.length_normalize || !loss_is_of_margin(o.kind)) return {1, 1};
  return {static_cast<double>(s.length_chosen), static_cast<double>(s.length_rejected)};
}

/// Mean log-probability per response token.
Both mean_log_probs(const PairScores& s) {
  return {s.log_prob_chosen / s.length_chosen, s.log_prob_rejected / s.length_rejected};
}

/// Azar et al. 2023 (IPO) on per-token means, as TRL does: (log-ratio difference - 1 / (2 beta))^2.
void ipo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const Both ratio = log_ratios(o, s);
  const double gap = ratio.chosen / s.length_chosen - ratio.rejected / s.length_rejected - 1 / (2 * o.beta);
  r.loss = gap * gap;
  r.d_log_prob_chosen = 2 * gap / s.length_chosen;
  r.d_log_prob_rejected = -2 * gap / s.length_rejected;
}

/// Ethayarajh et al. 2024 (KTO), on pairs: w_D sigmoid(-beta (ratio_w - KL_l)) for the chosen response,
/// w_U sigmoid(-beta (KL_w - ratio_l)) for the rejected one, and their mean. As TRL's kto_pair does, each half takes
/// its KL from the other half of the batch, as a constant.
void kto(const LossOptions& o, const PairScores& s, const BatchStatistics& batch, PairLoss& r) {
  const Both ratio = log_ratios(o, s);
  const double gain = o.beta * (ratio.chosen - batch.kl_rejected), loss = o.beta * (batch.kl_chosen - ratio.rejected);
  r.loss = 0.5 * (o.kto_chosen_weight * sigmoid(-gain) + o.kto_rejected_weight * sigmoid(-loss));
  r.d_log_prob_chosen = -0.5 * o.beta * o.kto_chosen_weight * sigmoid(gain) * sigmoid(-gain);
  r.d_log_prob_rejected = 0.5 * o.beta * o.kto_rejected_weight * sigmoid(loss) * sigmoid(-loss);
}

/// Meng et al. 2024 (SimPO): -log sigmoid(beta (mean_w - mean_l) - gamma), gamma = simpo_gamma beta.
void simpo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const Both mean = mean_log_probs(s);
  r.margin_implicit = o.beta * (mean.chosen - mean.rejected);
  const Curve c = negative_log_sigmoid(r.margin_implicit - o.simpo_gamma * o.beta);
  r.loss = c.value;
  r.d_log_prob_chosen = c.slope * o.beta / s.length_chosen;
  r.d_log_prob_rejected = -c.slope * o.beta / s.length_rejected;
}

/// Hong et al. 2024 (ORPO): -mean_w - beta log sigmoid(log odds_w - log odds_l), odds of exp(mean log-probability).
void orpo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const Both mean = mean_log_probs(s);
  const auto log_odds = [](double x) { return x - std::log(-std::expm1(x)); };
  const auto slope = [](double x) { return -1 / std::expm1(x); };
  r.margin_implicit = log_odds(mean.chosen) - log_odds(mean.rejected);
  const Curve c = negative_log_sigmoid(r.margin_implicit);
  r.loss = -mean.chosen + o.beta * c.value;
  r.d_log_prob_chosen = (-1 + o.beta * c.slope * slope(mean.chosen)) / s.length_chosen;
  r.d_log_prob_rejected = -o.beta * c.slope * slope(mean.rejected) / s.length_rejected;
}

constexpr std::array<std::string_view, 10> names{"dpo",   "cdpo", "robust", "ipo", "hinge",
                                                 "simpo", "orpo", "kto",    "sft", "reward"};

}  // namespace

std::span<const std::string_view> loss_names() { return names; }

bool loss_needs_reference(std::string_view kind) {
  return kind != "simpo" && kind != "orpo" && kind != "sft" && kind != "reward";
}

bool loss_is_of_margin(std::string_view kind) {
  return kind == "dpo" || kind == "cdpo" || kind == "robust" || kind == "hinge";
}

bool loss_needs_statistics(std::string_view kind) { return kind == "kto"; }

BatchStatistics batch_statistics(const LossOptions& o, std::span<const PairScores> batch) {
  BatchStatistics r;
  if (batch.empty()) return r;
  for (const PairScores& s : batch) {
    const Both ratio = log_ratios(o, s);
    r.kl_chosen += ratio.chosen;
    r.kl_rejected += ratio.rejected;
  }
  for (double* kl : {&r.kl_chosen, &r.kl_rejected}) {
    *kl /= static_cast<double>(batch.size());
    if (*kl < 0) *kl = 0;  // NaN stays
  }
  return r;
}

PairLoss preference_loss(const LossOptions& o, const PairScores& s, const BatchStatistics& batch) {
  PairLoss r;
  const Both ratio = log_ratios(o, s), divisor = divisors(o, s);
  r.margin_implicit = o.beta * (ratio.chosen / divisor.chosen - ratio.rejected / divisor.rejected);
  r.margin_explicit = s.reward_chosen - s.reward_rejected;
  double lambda = o.lambda;
  double d_margin_explicit = 0;
  if (o.kind == "ipo") {
    ipo(o, s, r);
  } else if (o.kind == "kto") {
    kto(o, s, batch, r);
  } else if (o.kind == "simpo") {
    simpo(o, s, r);
  } else if (o.kind == "orpo") {
    orpo(o, s, r);
  } else if (o.kind == "sft") {
    r.loss = -s.log_prob_chosen / s.length_chosen;
    r.d_log_prob_chosen = -1.0 / s.length_chosen;
  } else if (o.kind == "reward") {
    const Curve c = negative_log_sigmoid(r.margin_explicit);
    r.loss = c.value;
    r.d_reward_chosen = c.slope;
    r.d_reward_rejected = -c.slope;
    r.margin = r.margin_explicit;
    return r;
  } else {
    const Curve c = margin_loss(o, r.margin_implicit + lambda * r.margin_explicit);
    r.loss = c.value;
    r.d_log_prob_chosen = c.slope * o.beta / divisor.chosen;
    r.d_log_prob_rejected = -c.slope * o.beta / divisor.rejected;
    d_margin_explicit = c.slope * lambda;
  }
  if (o.mu != 0) {
    const Curve c = negative_log_sigmoid(r.margin_explicit);
    r.loss += o.mu * c.value;
    d_margin_explicit += o.mu * c.slope;
  }
  r.d_reward_chosen = d_margin_explicit;
  r.d_reward_rejected = -d_margin_explicit;
  r.margin = r.margin_implicit + lambda * r.margin_explicit;
  return r;
}

}  // namespace fedpdpo
