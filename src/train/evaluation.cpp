// Evaluation.
#include "fedpdpo/train/evaluation.hpp"

#include <algorithm>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// The models' pairs one after another, packed in batches of about `micro_rows` rows: visit(batch, index of its first
/// pair) until it returns false.
template <class Visit>
void for_batches(const PairSet& set, const PackingOptions& packing, std::span<const EvaluatedModel> models,
                 int micro_rows, Visit visit) {
  std::vector<PairToPack> to_pack;
  std::vector<std::size_t> ends;  // of each model's pairs
  for (const EvaluatedModel& model : models) {
    for (const ClientPair& pair : model.pairs) to_pack.push_back(pair.pair);
    ends.push_back(to_pack.size());
  }
  const std::vector<std::size_t> cuts = cut_by_rows(set, to_pack, packing, micro_rows);
  PackedBatch batch;
  std::vector<MemberPairs> members;
  std::size_t model = 0;
  for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
    members.clear();
    for (std::size_t begin = cuts[c]; begin < cuts[c + 1];) {
      while (ends[model] <= begin) ++model;
      const std::size_t end = std::min(ends[model], cuts[c + 1]);
      members.push_back({models[model].slot, std::span(to_pack).subspan(begin, end - begin)});
      begin = end;
    }
    pack(set, members, packing, batch);
    if (!visit(std::as_const(batch), cuts[c])) return;
  }
}

/// How much the LoRAs count for a pair.
struct PairWeights {
  float shared = 1, personal = 0;
};

std::vector<PairWeights> pair_weights(std::span<const EvaluatedModel> models) {
  std::vector<PairWeights> weights;
  for (const EvaluatedModel& model : models) {
    check(model.personal_weights.empty() || model.personal_weights.size() == model.pairs.size(), "one weight a pair");
    for (std::size_t i = 0; i < model.pairs.size(); ++i) {
      const float personal = model.personal_weights.empty() ? 0.0f : model.personal_weights[i];
      weights.push_back({model.lora_weight * (1 - personal), personal});
    }
  }
  return weights;
}

/// `by_pair`: of the batch's pairs.
RowWeights row_weights(const PackedBatch& batch, std::span<const PairWeights> by_pair, bool personal) {
  RowWeights weights;
  const auto rows = static_cast<std::size_t>(batch.num_rows());
  weights.shared.resize(rows);
  if (personal) weights.personal.resize(rows);
  for (std::size_t i = 0; i < batch.pairs.size(); ++i) {
    const auto [begin, end] = batch.rows_of_pair(i);
    for (std::size_t row = begin; row < end; ++row) {
      weights.shared[row] = by_pair[i].shared;
      if (personal) weights.personal[row] = by_pair[i].personal;
    }
  }
  return weights;
}

}  // namespace

std::optional<std::vector<PairScores>> score_pairs(const PairSet& set, Policy& policy,
                                                   const CohortParameters& parameters,
                                                   std::span<const EvaluatedModel> models, int micro_rows,
                                                   const std::function<bool()>& stop) {
  const bool personal = std::any_of(models.begin(), models.end(),
                                    [](const EvaluatedModel& model) { return !model.personal_weights.empty(); });
  const bool weighted = personal || std::any_of(models.begin(), models.end(),
                                                [](const EvaluatedModel& model) { return model.lora_weight != 1; });
  for (const EvaluatedModel& model : models)
    check(model.pairs.empty() || personal == !model.personal_weights.empty(),
          "all models weigh a personal LoRA or none");
  const std::vector<PairWeights> weights = weighted ? pair_weights(models) : std::vector<PairWeights>{};
  std::vector<PairScores> all;
  for (const EvaluatedModel& model : models)
    for (const ClientPair& pair : model.pairs) add_reference(all.emplace_back(), pair);

  bool stopped = false;
  for_batches(set, policy.packing(), models, micro_rows, [&](const PackedBatch& batch, std::size_t first) {
    stopped = stop && stop();
    if (stopped) return false;
    const std::size_t n = batch.pairs.size();
    policy.score(batch, parameters, std::span(all).subspan(first, n),
                 weighted ? row_weights(batch, std::span(weights).subspan(first, n), personal) : RowWeights{});
    return true;
  });
  if (stopped) return std::nullopt;
  return all;
}

Evaluation evaluation_of(const LossOptions& loss, std::span<const PairScores> scores) {
  Evaluation result;
  const BatchStatistics statistics =
      loss_needs_statistics(loss.kind) ? batch_statistics(loss, scores) : BatchStatistics{};
  for (const PairScores& s : scores) {
    const PairLoss r = preference_loss(loss, s, statistics);
    result.margin.push_back(r.margin);
    result.margin_implicit.push_back(r.margin_implicit);
    result.margin_explicit.push_back(r.margin_explicit);
    result.loss += r.loss;
    result.accuracy += half_ties(r.margin);
    result.accuracy_implicit += half_ties(r.margin_implicit);
    result.accuracy_explicit += half_ties(r.margin_explicit);
    result.mean_margin += r.margin;
    result.mean_margin_implicit += r.margin_implicit;
    result.mean_margin_explicit += r.margin_explicit;
    result.log_prob_chosen += s.log_prob_chosen;
    result.log_prob_rejected += s.log_prob_rejected;
    result.kl_to_reference += 0.5 * ((s.log_prob_chosen - s.reference_chosen) / s.length_chosen +
                                     (s.log_prob_rejected - s.reference_rejected) / s.length_rejected);
  }
  const auto n = static_cast<double>(std::max<std::size_t>(1, scores.size()));
  for (double* sum : {&result.loss, &result.accuracy, &result.accuracy_implicit, &result.accuracy_explicit,
                      &result.mean_margin, &result.mean_margin_implicit, &result.mean_margin_explicit,
                      &result.log_prob_chosen, &result.log_prob_rejected, &result.kl_to_reference})
    *sum /= n;
  return result;
}

std::optional<std::vector<Evaluation>> evaluate(const PairSet& set, Policy& policy, const CohortParameters& parameters,
                                                std::span<const EvaluatedModel> models, const LossOptions& loss,
                                                int micro_rows, const std::function<bool()>& stop) {
  const auto scores = score_pairs(set, policy, parameters, models, micro_rows, stop);
  if (!scores) return std::nullopt;
  std::vector<Evaluation> result;
  std::size_t first = 0;
  for (const EvaluatedModel& model : models) {
    result.push_back(evaluation_of(loss, std::span(*scores).subspan(first, model.pairs.size())));
    first += model.pairs.size();
  }
  return result;
}

std::vector<float> embed_pairs(const PairSet& set, Policy& policy, const CohortParameters& parameters,
                               std::int32_t slot, std::span<const ClientPair> pairs, int micro_rows) {
  std::vector<float> result;
  const EvaluatedModel model{slot, pairs};
  for_batches(set, policy.packing(), std::span(&model, 1), micro_rows, [&](const PackedBatch& batch, std::size_t) {
    const std::vector<float> part = policy.pair_embeddings(batch, parameters);
    result.insert(result.end(), part.begin(), part.end());
    return true;
  });
  return result;
}

}  // namespace fedpdpo
