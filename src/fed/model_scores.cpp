// Scoring by the program's own policy: the model is put where a client's would be.
#include "fedpdpo/fed/model_scores.hpp"

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "fedpdpo/train/evaluation.hpp"
#include "keyed_rows.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t num_fields = 6;

void append(std::vector<double>& row, const PairScores& s) {
  row.insert(row.end(), {s.log_prob_chosen, s.log_prob_rejected, s.reward_chosen, s.reward_rejected,
                         static_cast<double>(s.length_chosen), static_cast<double>(s.length_rejected)});
}

PairScores scores_from(const double* field, const ClientPair& pair) {
  PairScores s;
  s.log_prob_chosen = field[0];
  s.log_prob_rejected = field[1];
  s.reward_chosen = field[2];
  s.reward_rejected = field[3];
  s.length_chosen = static_cast<int>(field[4]);
  s.length_rejected = static_cast<int>(field[5]);
  add_reference(s, pair);
  return s;
}

}  // namespace

std::vector<PairScores> score_model(const ScoringInput& in, const TrainedModel& model,
                                    std::span<const ClientPair> list) {
  const ParameterLayout layout = model.layout(in.config);
  check(model.values.size() == layout.size(), "values of another layout");
  Policy policy(in.backend, in.config, in.weights, layout);
  std::optional<MovedBackbone> moved;
  if (!model.residual.empty()) {
    moved.emplace(in.backend, in.config, in.weights).move(layout, model.residual);
    policy.use_backbone(moved->weights());
  }
  ClientBuffers buffers(in.backend, layout, 1);
  ClientState state;
  if (layout.size() > 0)
    in.backend.copy_to_device(buffers.values(state).data, model.values.data(), model.values.size() * sizeof(float));

  std::vector<PairToPack> to_pack;
  for (const ClientPair& pair : list) to_pack.push_back(pair.pair);
  const std::vector<std::size_t> cuts = cut_by_rows(in.pairs, to_pack, policy.packing(), in.micro_rows);
  KeyedRows own;
  std::vector<double> row;
  for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
    if (std::cmp_not_equal(c % static_cast<std::size_t>(in.world.size()), in.world.rank())) continue;
    const auto part = list.subspan(cuts[c], cuts[c + 1] - cuts[c]);
    row.clear();
    const EvaluatedModel evaluated{state.slot, part};
    const auto scores =
        score_pairs(in.pairs, policy, buffers.parameters(), std::span(&evaluated, 1), in.micro_rows, nullptr);
    for (const PairScores& pair : *scores) append(row, pair);
    own.add(static_cast<int>(c), row);
  }
  std::vector<PairScores> all;
  for (const auto& [chunk, numbers] : own.gather(in.world))
    for (std::size_t at = 0; at < numbers.size(); at += num_fields)
      all.push_back(scores_from(numbers.data() + at, list[all.size()]));
  check(in.world.rank() != 0 || all.size() == list.size(), "scores of other pairs");
  return all;
}

}  // namespace fedpdpo
