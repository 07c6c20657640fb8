// Preference losses: pure host functions of a pair's sequence log-probabilities and rewards, with their derivatives.
//
//   m_i = beta [(log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))]      implicit margin (DPO, Rafailov 2023)
//   m_e = r(x, y_w) - r(x, y_l)                                                    explicit margin (FedPDPO)
//   m   = m_i + lambda m_e
// With a reward head the losses that are functions of m_i (dpo, cdpo, robust, hinge) take m for it and gain
// - mu log sigmoid(m_e). ipo and kto gain that term alone: lambda weighs m_e in their prediction m, not in their loss.
// simpo, orpo and sft go without a reward head, and `reward` knows nothing but m_e.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace fedpdpo {

struct LossOptions {
  std::string kind = "dpo";  ///< a name of loss_names()
  double beta = 0.1;
  double lambda = 1;             ///< weight of the explicit margin; 0 without a reward head
  double mu = 0.5;               ///< weight of the reward's own Bradley-Terry term; 0 without a reward head
  double label_smoothing = 0.1;  ///< cdpo, robust: probability that a label is wrong
  double simpo_gamma = 0.5;      ///< simpo: target margin over beta
  double kto_chosen_weight = 1, kto_rejected_weight = 1;  ///< kto: of the two halves of the loss
  bool reference_free = false;    ///< log ref = 0 in the losses that need a reference, and in m_i
  bool length_normalize = false;  ///< losses of m_i: log-ratios per response token, in the loss and in m_i
};

/// What the model says of a pair: sums over response tokens, and rewards.
struct PairScores {
  double log_prob_chosen = 0, log_prob_rejected = 0;
  double reference_chosen = 0, reference_rejected = 0;
  double reward_chosen = 0, reward_rejected = 0;
  int length_chosen = 1, length_rejected = 1;
};

/// What a loss knows of the batch around a pair: numbers that it does not differentiate.
struct BatchStatistics {
  double kl_chosen = 0, kl_rejected = 0;  ///< max(0, mean log-ratio of policy and reference), kto
};

struct PairLoss {
  double loss = 0;
  double margin = 0, margin_implicit = 0, margin_explicit = 0;  ///< for losses without a reference m_i has none
  double d_log_prob_chosen = 0, d_log_prob_rejected = 0;
  double d_reward_chosen = 0, d_reward_rejected = 0;
};

/// Names that LossOptions::kind may have.
std::span<const std::string_view> loss_names();
/// True for losses that use the reference's log-probabilities.
bool loss_needs_reference(std::string_view kind);
/// True for losses that are functions of m_i (or m).
bool loss_is_of_margin(std::string_view kind);
/// True for losses that use BatchStatistics.
bool loss_needs_statistics(std::string_view kind);
/// Of a client's whole batch: all pairs of a local step, or of a split that is evaluated.
BatchStatistics batch_statistics(const LossOptions& options, std::span<const PairScores> batch);
/// The loss of one pair, with derivatives. `kind` must be one of loss_names().
PairLoss preference_loss(const LossOptions& options, const PairScores& scores, const BatchStatistics& batch = {});

}  // namespace fedpdpo
