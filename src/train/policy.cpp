// Policy: forward and backward over a packed batch. A pass is: load (buffers, uploads), work on the device, scores to
// the host, the loss there, derivatives back, work on the device.
#include "fedpdpo/train/policy.hpp"

#include <algorithm>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// Logits of a chunk stay within this, where a single pair allows it: in the caches' reach on a CPU, so large on a
/// device that most passes are one chunk and wait once.
constexpr std::int64_t host_logits_bytes = 32 << 20, device_logits_bytes = 1 << 30;

}  // namespace

Policy::Policy(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout)
    : backend_(backend),
      config_(config),
      layout_(layout),
      decoder_(backend, config, weights, layout),
      heads_(backend, config, weights, layout),
      chunk_rows_(std::max<std::int64_t>(
          64, (backend.computes_on_host_memory() ? host_logits_bytes : device_logits_bytes) / (4 * config.vocab_size))),
      backbone_(&weights) {}

std::vector<float> Policy::pair_embeddings(const PackedBatch& batch, const CohortParameters& parameters) {
  RowWeights off;
  if (layout_.options().lora_rank > 0) off.shared.assign(static_cast<std::size_t>(batch.num_rows()), 0.0f);
  reserve(batch, false);
  const BatchView view = load(batch, off, Pass::evaluate);
  const ConstView h = decoder_.run(view, parameters, Pass::evaluate);
  const auto d = static_cast<std::size_t>(config_.hidden_size);
  std::vector<float> hidden(static_cast<std::size_t>(batch.num_rows()) * d);
  backend_.copy_to_host(hidden.data(), h.data, hidden.size() * sizeof(float));
  std::vector<float> result(batch.pairs.size() * d);
  std::vector<double> sum(d);
  for (std::size_t i = 0; i < batch.pairs.size(); ++i) {
    const auto [begin, end] = batch.rows_of_pair(i);
    std::fill(sum.begin(), sum.end(), 0.0);
    for (std::size_t row = begin; row < end; ++row)
      for (std::size_t j = 0; j < d; ++j) sum[j] += static_cast<double>(hidden[row * d + j]);
    for (std::size_t j = 0; j < d; ++j)
      result[i * d + j] = static_cast<float>(sum[j] / static_cast<double>(end - begin));
  }
  return result;
}

std::vector<Policy::Chunk> Policy::chunks(const PackedBatch& batch) const {
  std::vector<Chunk> result;
  for (std::size_t i = 0; i < batch.pairs.size(); ++i) {
    const PackedPair& pair = batch.pairs[i];
    if (result.empty() || pair.target_end - result.back().target_begin > chunk_rows_)
      result.push_back({i, i, pair.target_begin, pair.target_begin});
    result.back().pair_end = i + 1;
    result.back().target_end = pair.target_end;
  }
  // A single chunk takes the filling in, so that its size is the batch's.
  if (result.size() == 1) result.front() = {0, batch.pairs.size(), 0, batch.num_targets()};
  return result;
}

// --- work on the device

void Policy::rewards(const PackedBatch& batch, const CohortParameters& p, ConstView z) {
  if (!layout_.has(Group::reward)) return;
  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  View pooled = pooled_.first(responses);
  if (layout_.options().reward_pool == RewardPool::last) {
    backend_.gather_rows(z, index_view(response_rows_, pooled_rows), pooled);
  } else {
    View rows = response_z_.first(pooled_rows), sums = pooled_.first(responses + 1);
    backend_.gather_rows(z, index_view(response_rows_, pooled_rows), rows);
    backend_.fill(sums, 0.0f);
    backend_.scatter_add_rows(rows, index_view(response_of_row_, pooled_rows), sums);
  }
  heads_.rewards(batch.client_responses, p, pooled, scores_.first(responses));
  const auto members = static_cast<std::int64_t>(batch.client_responses.size());
  const ConstClientMatrix c = layout_.matrix(layout_.reward_bias, p.values, p.slot_stride);
  std::int64_t slots = 0;
  for (const MemberRows& member : batch.client_responses) slots = std::max<std::int64_t>(slots, member.slot + 1);
  backend_.gather_rows({c.data, slots, 1, std::max<std::int64_t>(c.slot_stride, 1), DType::f32},
                       index_view(slots_, members), scores_.view().row_range(responses, responses + members));
}

void Policy::head_forward(const CohortParameters& p, ConstView z, const Chunk& chunk, View log_prob) {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  View z_rows = z_targets_.first(n), logits = this->logits(n);
  View lse{lse_.view().data, 1, n, n, DType::f32};
  backend_.gather_rows(z, target_indices(target_rows_, chunk), z_rows);
  heads_.logits(chunk_members_, p, z_rows, logits);
  backend_.log_softmax(logits, target_indices(target_tokens_, chunk), log_prob, lse);
}

void Policy::head_backward(const CohortParameters& p, const CohortGradients& g, const Chunk& chunk, View d_z) {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  View logits = this->logits(n), d_rows = d_z_targets_.first(n);
  View d_logits = heads_.takes_half_gradients() ? half_rows(logits) : logits;
  const auto by_target = [&](const Tensor& tensor) { return ConstView{tensor.view().data, 1, n, n, DType::f32}; };
  backend_.log_softmax_backward(target_indices(target_tokens_, chunk), by_target(lse_), by_target(coefficient_), logits,
                                d_logits);
  heads_.logits_backward(chunk_members_, p, g, z_targets_.first(n), d_logits, d_rows);
  backend_.scatter_add_rows(d_rows, target_indices(target_rows_, chunk), d_z);
}

void Policy::reward_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g, View d_z) {
  if (!layout_.has(Group::reward)) return;
  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  View d_pooled = d_pooled_.first(responses);
  heads_.rewards_backward(batch.client_responses, p, g, pooled_.first(responses), d_scaled_.first(responses),
                          d_reward_.first(responses), d_pooled);
  if (layout_.options().reward_gradient == RewardGradient::none) return;
  View target = d_z;
  if (layout_.options().reward_gradient == RewardGradient::private_only) {
    if (!layout_.has(Group::bottleneck)) return;
    target = d_z_reward_.first(batch.num_rows());
    backend_.fill(target, 0.0f);
  }
  ConstView d_rows = d_pooled;
  if (layout_.options().reward_pool == RewardPool::mean) {
    // What is filled up adds nothing to the first row.
    backend_.fill(d_pooled_.view().row_range(responses, responses + 1), 0.0f);
    View spread = response_z_.first(pooled_rows);
    backend_.gather_rows(d_pooled_.first(responses + 1), index_view(response_of_row_, pooled_rows), spread);
    d_rows = spread;
  }
  backend_.scatter_add_rows(d_rows, index_view(response_rows_, pooled_rows), target);
}

void Policy::modules_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g,
                              ConstView h, View* d_h) {
  const std::int64_t rows = batch.num_rows();
  View d_z = d_z_.first(rows);
  reward_backward(batch, p, g, d_z);
  const bool privately =
      layout_.has(Group::reward) && layout_.options().reward_gradient == RewardGradient::private_only;
  if (!privately || !layout_.has(Group::bottleneck)) {
    heads_.bottleneck_backward(batch.clients, p, g, h, d_z, d_h);
    return;
  }
  // The reward's gradient reaches the bottleneck's parameters but not h: a pass of its own without d_h.
  CohortGradients again = g;
  heads_.bottleneck_backward(batch.clients, p, g, h, d_z_reward_.first(rows), nullptr);
  again.write = g.wants(Group::bottleneck) ? Write::accumulate : g.write;
  heads_.bottleneck_backward(batch.clients, p, again, h, d_z, d_h);
}

// --- passes

void Policy::score(const PackedBatch& batch, const CohortParameters& parameters, std::span<PairScores> scores,
                   const RowWeights& row_weights) {
  check(scores.size() == batch.pairs.size(), "score: one PairScores a pair");
  reserve(batch, false);
  const BatchView view = load(batch, row_weights, Pass::evaluate);
  const ConstView h = decoder_.run(view, parameters, Pass::evaluate);
  const ConstView z = heads_.bottleneck(batch.clients, parameters, h);
  rewards(batch, parameters, z);
  Read what = Read::rewards_too;
  for (const Chunk& chunk : chunks(batch)) {
    cut_members(batch, chunk);
    head_forward(parameters, z, chunk, log_probs(batch, chunk));
    read_scores(batch, chunk, std::exchange(what, Read::log_probs), scores);
  }
}

void Policy::train(const PackedBatch& batch, const CohortParameters& parameters, const CohortGradients& gradients,
                   const LossFunction& loss, std::span<PairScores> scores, const LoraDropout& dropout,
                   const RowWeights& row_weights) {
  check(scores.size() == batch.pairs.size(), "train: one PairScores a pair");
  const bool through_backbone = gradients.wants_lora(parameters.adapter);
  const Pass pass = through_backbone ? Pass::train : Pass::evaluate;
  reserve(batch, true);
  const BatchView view = load(batch, row_weights, pass);
  const std::vector<Chunk> cuts = chunks(batch);
  View d_z = d_z_.first(batch.num_rows()), d_h = d_z;
  d_rewards_.assign(2 * batch.pairs.size(), 0.0);
  Recorded once;
  Recorded* kept = cuts.size() == 1 && dropout.p == 0 ? recorded(batch, parameters, gradients, row_weights) : nullptr;
  Recorded& passage = kept ? *kept : once;
  const auto run = [&](std::unique_ptr<Recording>& recording, const std::function<void()>& work) {
    if (!recording) return work();
    backend_.run(*recording, work);
  };

  cut_members(batch, cuts.front());
  run(passage.forward, [&] {
    passage.h = decoder_.run(view, parameters, pass, dropout);
    passage.z = heads_.bottleneck(batch.clients, parameters, passage.h);
    rewards(batch, parameters, passage.z);
    head_forward(parameters, passage.z, cuts.front(), log_probs(batch, cuts.front()));
  });
  read_scores(batch, cuts.front(), Read::rewards_too, scores);
  ask_loss(batch, cuts.front(), loss, scores);

  CohortGradients later = gradients;
  later.write = Write::accumulate;
  const auto finish = [&] {
    modules_backward(batch, parameters, gradients, passage.h, through_backbone ? &d_h : nullptr);
    decoder_.backward(view, parameters, gradients, d_h, dropout);
  };
  if (cuts.size() == 1) {
    upload_reward_derivatives(batch);
    run(passage.backward, [&] {
      backend_.fill(d_z, 0.0f);
      head_backward(parameters, gradients, cuts.front(), d_z);
      finish();
    });
    return;
  }
  backend_.fill(d_z, 0.0f);
  head_backward(parameters, gradients, cuts.front(), d_z);
  for (std::size_t c = 1; c < cuts.size(); ++c) {
    cut_members(batch, cuts[c]);
    head_forward(parameters, passage.z, cuts[c], log_probs(batch, cuts[c]));
    read_scores(batch, cuts[c], Read::log_probs, scores);
    ask_loss(batch, cuts[c], loss, scores);
    head_backward(parameters, later, cuts[c], d_z);
  }
  upload_reward_derivatives(batch);
  finish();
}

}  // namespace fedpdpo
