// Scores of a trained model that belongs to no run: on any pairs, dealt to the ranks.
#pragma once

#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/model/trained_model.hpp"
#include "fedpdpo/train/client_state.hpp"
#include "fedpdpo/train/losses.hpp"

namespace fedpdpo {

/// What scoring takes beside the model; everything outlives the call.
struct ScoringInput {
  const Communicator& world;
  Backend& backend;
  const ModelConfig& config;
  const Weights& weights;  ///< W0
  const PairSet& pairs;
  int micro_rows = 1024;  ///< packed rows a pass
};

/// Collective. Log-probabilities and rewards of the listed pairs, with their references, in their order on rank 0,
/// empty elsewhere. Pairs are scored in runs of the list, cut by rows and by nothing else, so that the numbers do not
/// depend on the number of ranks.
std::vector<PairScores> score_model(const ScoringInput& input, const TrainedModel& model,
                                    std::span<const ClientPair> list);

}  // namespace fedpdpo
