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

/// Mean log-probability per response token.
struct Means {
  double chosen, rejected;
};

Means mean_log_probs(const PairScores& s) {
  return {s.log_prob_chosen / s.length_chosen, s.log_prob_rejected / s.length_rejected};
}

/// Azar et al. 2023 (IPO) on per-token means, as TRL does: (log-ratio difference - 1 / (2 beta))^2.
void ipo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const double ratio = (s.log_prob_chosen - s.reference_chosen) / s.length_chosen -
                       (s.log_prob_rejected - s.reference_rejected) / s.length_rejected;
  const double gap = ratio - 1 / (2 * o.beta);
  r.loss = gap * gap;
  r.d_log_prob_chosen = 2 * gap / s.length_chosen;
  r.d_log_prob_rejected = -2 * gap / s.length_rejected;
}

/// Meng et al. 2024 (SimPO): -log sigmoid(beta (mean_w - mean_l) - gamma), gamma = simpo_gamma beta.
void simpo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const Means mean = mean_log_probs(s);
  r.margin_implicit = o.beta * (mean.chosen - mean.rejected);
  const Curve c = negative_log_sigmoid(r.margin_implicit - o.simpo_gamma * o.beta);
  r.loss = c.value;
  r.d_log_prob_chosen = c.slope * o.beta / s.length_chosen;
  r.d_log_prob_rejected = -c.slope * o.beta / s.length_rejected;
}

/// Hong et al. 2024 (ORPO): -mean_w - beta log sigmoid(log odds_w - log odds_l), odds of exp(mean log-probability).
void orpo(const LossOptions& o, const PairScores& s, PairLoss& r) {
  const Means mean = mean_log_probs(s);
  const auto log_odds = [](double x) { return x - std::log(-std::expm1(x)); };
  const auto slope = [](double x) { return -1 / std::expm1(x); };
  r.margin_implicit = log_odds(mean.chosen) - log_odds(mean.rejected);
  const Curve c = negative_log_sigmoid(r.margin_implicit);
  r.loss = -mean.chosen + o.beta * c.value;
  r.d_log_prob_chosen = (-1 + o.beta * c.slope * slope(mean.chosen)) / s.length_chosen;
  r.d_log_prob_rejected = -o.beta * c.slope * slope(mean.rejected) / s.length_rejected;
}

constexpr std::array<std::string_view, 9> names{"dpo",   "cdpo", "robust", "ipo",   "hinge",
                                                "simpo", "orpo", "sft",    "reward"};

}  // namespace

std::span<const std::string_view> loss_names() { return names; }

bool loss_needs_reference(std::string_view kind) {
  return kind != "simpo" && kind != "orpo" && kind != "sft" && kind != "reward";
}

PairLoss preference_loss(const LossOptions& o, const PairScores& s) {
  PairLoss r;
  r.margin_implicit =
      o.beta * ((s.log_prob_chosen - s.reference_chosen) - (s.log_prob_rejected - s.reference_rejected));
  r.margin_explicit = s.reward_chosen - s.reward_rejected;
  double lambda = o.lambda;
  double d_margin_explicit = 0;
  if (o.kind == "ipo") {
    ipo(o, s, r);
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
    r.d_log_prob_chosen = c.slope * o.beta;
    r.d_log_prob_rejected = -c.slope * o.beta;
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
