// When clients' models are evaluated, and how often each pair of theirs is: what the round loop goes by, and `plan`.
#pragma once

#include <cstdint>
#include <vector>

#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

/// True of round 0, the start, of every --eval-every-th and of the last one.
bool is_evaluated_round(const RunOptions& options, int round);

/// True where a round has one evaluation, after the exchange, for both points: without an exchange and refit the model
/// is the same at both; a pooled model is everybody's only after it. `shared_size` is the layout's.
bool is_evaluated_once(const RunOptions& options, const FederatedMethod& method, std::size_t shared_size);

/// How often a client's pairs of each split go through its own model, or through others', in a whole run that nothing
/// interrupts. Not counted: what weighs a personal LoRA by instance, and how a new client finds its group.
struct PlannedEvaluations {
  int rounds = 0;  ///< with an evaluation, beside the start
  int points = 2;  ///< evaluations in each of them
  struct Passes {
    std::int64_t start = 0, rounds = 0, end = 0;
    std::int64_t total() const { return start + rounds + end; }
  };
  std::vector<std::array<Passes, 3>> own;  ///< by client and split: of its own model
  /// By client: its model on everybody's test pairs, once at the end (--cross-eval).
  std::vector<bool> crosses;
};
PlannedEvaluations planned_evaluations(const RunOptions& options, const FederatedMethod& method,
                                       std::size_t shared_size, const Partition& partition);

}  // namespace fedpdpo
