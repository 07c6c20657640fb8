// What training and evaluation do alike with a pair's scores.
#pragma once

#include "fedpdpo/train/client_state.hpp"
#include "fedpdpo/train/losses.hpp"

namespace fedpdpo {

inline void add_reference(PairScores& scores, const ClientPair& pair) {
  scores.reference_chosen = pair.reference_chosen;
  scores.reference_rejected = pair.reference_rejected;
}

/// A margin's share of the accuracy: a tie counts one half.
inline double half_ties(double margin) { return margin > 0 ? 1.0 : (margin == 0 ? 0.5 : 0.0); }

}  // namespace fedpdpo
