// The schedule of evaluations.
#include "fedpdpo/fed/evaluation_schedule.hpp"

#include "fedpdpo/fed/round_table.hpp"

namespace fedpdpo {

bool is_evaluated_round(const RunOptions& options, int round) {
  return round == 0 || round == options.rounds || (options.eval_every > 0 && round % options.eval_every == 0);
}

bool is_evaluated_once(const RunOptions& options, const FederatedMethod& method, std::size_t shared_size) {
  return method.data_scope() == DataScope::pooled || (shared_size == 0 && options.refit == 0);
}

PlannedEvaluations planned_evaluations(const RunOptions& options, const FederatedMethod& method,
                                       std::size_t shared_size, const Partition& partition) {
  PlannedEvaluations planned;
  for (int round = 1; round <= options.rounds; ++round)
    if (is_evaluated_round(options, round)) ++planned.rounds;
  planned.points = is_evaluated_once(options, method, shared_size) ? 1 : 2;
  for (const ClientShare& client : partition.clients) {
    auto& own = planned.own.emplace_back();
    planned.crosses.push_back(options.cross_eval && !client.is_new);
    if (client.is_new) {
      own[static_cast<std::size_t>(Split::test)].end = 2;  // as it received the model, and fitted
      continue;
    }
    for (const Split split : parse_splits(options.eval_splits))
      own[static_cast<std::size_t>(split)] = {1, std::int64_t{planned.rounds} * planned.points, 0};
  }
  return planned;
}

}  // namespace fedpdpo
