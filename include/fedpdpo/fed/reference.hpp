// Reference log-probabilities: log pi_ref of both responses of every pair, under the pretrained model, computed once
// and kept in a content-addressed file that every later run with the same model, pairs and arithmetic reads.
//
// Pairs are scored in chunks that are runs of the file, cut by rows and by nothing else, so that a pair's number does
// not depend on the number of ranks, on the partition, or on what was computed before.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/data/pairs.hpp"
#include "fedpdpo/data/partition.hpp"
#include "fedpdpo/model/weights.hpp"
#include "fedpdpo/train/policy.hpp"

namespace fedpdpo {

/// By file: sums over response tokens, NaN where not needed so far.
struct ReferenceLogProbs {
  std::vector<std::vector<double>> chosen, rejected;
};

struct ReferenceRequest {
  std::string model_hash;       ///< of the model's content
  std::string arithmetic;       ///< e.g. "cpu-fp32": what else the numbers depend on
  std::filesystem::path cache;  ///< folder; empty: no cache
};

struct ReferenceReport {
  std::size_t num_computed = 0, num_reused = 0;
  double seconds = 0;
};

/// Collective. Fills the log-probabilities of all pairs of the partition; chunks that the cache lacks are dealt to the
/// ranks, and rank 0 writes the cache anew (merged, all or nothing).
ReferenceLogProbs reference_log_probs(const Communicator& world, Backend& backend, const ModelConfig& config,
                                      const Weights& weights, const PairSet& pairs, const Partition& partition,
                                      const ReferenceRequest& request, ReferenceReport& report);

/// $FEDPDPO_CACHE, else $XDG_CACHE_HOME/fedpdpo, else ~/.cache/fedpdpo.
std::filesystem::path default_reference_cache();

}  // namespace fedpdpo
