// Evaluation of clients' present models on lists of pairs. The models of a cohort share passes, as in training: each
// one's numbers are those that it has alone.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "fedpdpo/train/client_state.hpp"
#include "fedpdpo/train/losses.hpp"
#include "fedpdpo/train/policy.hpp"

namespace fedpdpo {

inline void add_reference(PairScores& scores, const ClientPair& pair) {
  scores.reference_chosen = pair.reference_chosen;
  scores.reference_rejected = pair.reference_rejected;
}

/// A margin's share of the accuracy: a tie counts one half.
inline double half_ties(double margin) { return margin > 0 ? 1.0 : (margin == 0 ? 0.5 : 0.0); }

/// Margins and losses of one client's pairs of one split, and their means.
struct Evaluation {
  std::vector<double> margin, margin_implicit, margin_explicit;  // by pair
  double loss = 0, accuracy = 0, accuracy_implicit = 0, accuracy_explicit = 0;
  double mean_margin = 0, mean_margin_implicit = 0, mean_margin_explicit = 0;
  double log_prob_chosen = 0, log_prob_rejected = 0, kl_to_reference = 0;
};

/// A client's present model, and the pairs that it is evaluated on.
struct EvaluatedModel {
  std::int32_t slot = 0;
  std::span<const ClientPair> pairs;
  float lora_weight = 1;
  /// By pair: the personal LoRA's output counts so much, the shared one's the rest of 1; empty: one LoRA alone.
  std::span<const float> personal_weights{};
};

/// Log-probabilities and rewards of the models' pairs, one model's after the other's, with their references; in passes
/// of at most `micro_rows` packed rows (or one longer pair) that the models share. Either all weigh a personal LoRA or
/// none. nullopt if `stop` (asked before every pass) became true on the way.
std::optional<std::vector<PairScores>> score_pairs(const PairSet& set, Policy& policy,
                                                   const CohortParameters& parameters,
                                                   std::span<const EvaluatedModel> models, int micro_rows,
                                                   const std::function<bool()>& stop);
/// Of one model's pairs. A pair counts as right where its margin is positive, as half right where it is exactly 0. The
/// loss's batch is the whole list.
Evaluation evaluation_of(const LossOptions& loss, std::span<const PairScores> scores);
/// Both, by model.
std::optional<std::vector<Evaluation>> evaluate(const PairSet& set, Policy& policy, const CohortParameters& parameters,
                                                std::span<const EvaluatedModel> models, const LossOptions& loss,
                                                int micro_rows, const std::function<bool()>& stop);

/// Policy::pair_embeddings of a list of pairs, (pairs, d).
std::vector<float> embed_pairs(const PairSet& set, Policy& policy, const CohortParameters& parameters,
                               std::int32_t slot, std::span<const ClientPair> pairs, int micro_rows);

}  // namespace fedpdpo
