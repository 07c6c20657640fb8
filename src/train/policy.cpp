// Policy: forward and backward over a packed batch.
#include "fedpdpo/train/policy.hpp"

#include <algorithm>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// Logits of a chunk stay within this, where a single pair allows it.
constexpr std::int64_t logits_budget_bytes = 32 << 20;

std::size_t bytes_of(std::int64_t n) { return static_cast<std::size_t>(n) * 4; }

}  // namespace

Policy::Policy(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout)
    : backend_(backend),
      config_(config),
      layout_(layout),
      decoder_(backend, config, weights, layout),
      heads_(backend, config, weights, layout),
      chunk_rows_(std::max<std::int64_t>(64, logits_budget_bytes / (4 * config.vocab_size))) {}

std::size_t Policy::buffer_bytes(std::int64_t rows, Pass pass) const {
  const std::int64_t head = std::min(rows, chunk_rows_) * (config_.vocab_size + 2 * config_.hidden_size);
  const std::int64_t modules = rows * (4 * config_.hidden_size + 3 * layout_.options().bottleneck);
  return decoder_.buffer_bytes(rows, pass) + bytes_of(head + modules);
}

BatchView Policy::view(const PackedBatch& batch, const RowWeights& row_weights) {
  const auto upload = [&](Tensor& tensor, const std::vector<float>& weights) -> ConstView {
    if (weights.empty()) return {};
    const auto n = static_cast<std::int64_t>(weights.size());
    check(n == batch.num_rows(), "row weights: one a row");
    if (tensor.rows() < n) tensor = Tensor(backend_, n, 1);
    backend_.copy_to_device(tensor.view().data, weights.data(), bytes_of(n));
    return {tensor.view().data, 1, n, n, DType::f32};
  };
  return {batch.tokens,
          batch.positions,
          {batch.segments, batch.segment_groups},
          batch.clients,
          {upload(shared_weights_, row_weights.shared), upload(personal_weights_, row_weights.personal)}};
}

std::vector<float> Policy::pair_embeddings(const PackedBatch& batch, const CohortParameters& parameters) {
  RowWeights off;
  if (layout_.options().lora_rank > 0) off.shared.assign(static_cast<std::size_t>(batch.num_rows()), 0.0f);
  const ConstView h = decoder_.forward(view(batch, off), parameters, Pass::evaluate);
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
  return result;
}

void Policy::reserve(const PackedBatch& batch, bool train) {
  const auto grow = [&](Tensor& tensor, std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    if (tensor.rows() < rows || tensor.cols() != cols)
      tensor = Tensor(backend_, std::max(rows, tensor.rows() + tensor.rows() / 4), cols, dtype);
  };
  std::int64_t chunk = 0;
  for (const Chunk& c : chunks(batch)) chunk = std::max<std::int64_t>(chunk, c.target_end - c.target_begin);
  const std::int64_t d = config_.hidden_size, targets = batch.num_targets();
  grow(target_rows_, targets, 1, DType::i32);
  grow(target_tokens_, targets, 1, DType::i32);
  grow(logits_, chunk, config_.vocab_size);
  grow(z_targets_, chunk, d);
  grow(log_prob_, chunk, 1);
  grow(lse_, chunk, 1);
  backend_.copy_to_device(target_rows_.view().data, batch.target_rows.data(), bytes_of(targets));
  backend_.copy_to_device(target_tokens_.view().data, batch.target_tokens.data(), bytes_of(targets));
  if (train) {
    grow(d_z_targets_, chunk, d);
    grow(coefficient_, chunk, 1);
    grow(d_z_, batch.num_rows(), d);
  }
  if (!layout_.has(Group::reward)) return;

  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  pool_rows_.clear();
  pool_response_.clear();
  for (std::size_t i = 0; i < batch.responses.size(); ++i) {
    const ResponseRows& rows = batch.responses[i];
    check(rows.count() > 0, "a batch for a reward head must keep the responses' last rows");
    const auto response = static_cast<std::int32_t>(i);
    if (layout_.options().reward_pool == RewardPool::last) {
      pool_rows_.push_back(rows.last());
      pool_response_.push_back(response);
      continue;
    }
    for (std::int32_t r = rows.common_begin; r < rows.common_end; ++r) pool_rows_.push_back(r);
    for (std::int32_t r = rows.own_begin; r < rows.own_end; ++r) pool_rows_.push_back(r);
    pool_response_.resize(pool_rows_.size(), response);
  }
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  grow(response_rows_, pooled_rows, 1, DType::i32);
  grow(response_of_row_, pooled_rows, 1, DType::i32);
  backend_.copy_to_device(response_rows_.view().data, pool_rows_.data(), bytes_of(pooled_rows));
  backend_.copy_to_device(response_of_row_.view().data, pool_response_.data(), bytes_of(pooled_rows));
  grow(response_z_, pooled_rows, d);
  grow(pooled_, responses, d);
  grow(reward_, responses, 1);
  if (train) {
    grow(d_reward_, responses, 1);
    grow(d_scaled_, responses, 1);
    grow(d_pooled_, responses, d);
    grow(d_z_reward_, batch.num_rows(), d);
  }
}

void Policy::score_rewards(const PackedBatch& batch, const CohortParameters& p, ConstView z,
                           std::span<PairScores> scores) {
  if (!layout_.has(Group::reward)) return;
  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  View pooled = pooled_.first(responses), r = reward_.first(responses);
  if (layout_.options().reward_pool == RewardPool::last) {
    backend_.gather_rows(z, index_view(response_rows_, pooled_rows), pooled);
  } else {
    View rows = response_z_.first(pooled_rows);
    backend_.gather_rows(z, index_view(response_rows_, pooled_rows), rows);
    backend_.fill(pooled, 0.0f);
    backend_.scatter_add_rows(rows, index_view(response_of_row_, pooled_rows), pooled);
  }
  heads_.rewards(batch.client_responses, p, pooled, r);
  host_.resize(std::max(host_.size(), static_cast<std::size_t>(responses)));
  backend_.copy_to_host(host_.data(), r.data, bytes_of(responses));
  for (const MemberRows& member : batch.client_responses) {
    float bias = 0;
    const ConstClientMatrix c = layout_.matrix(layout_.reward_bias, p.values, p.slot_stride);
    backend_.copy_to_host(&bias, c.data + member.slot * c.slot_stride, sizeof(bias));
    for (std::int32_t i = member.begin; i < member.end; ++i) {
      const auto response = static_cast<std::size_t>(i);
      const double divisor = layout_.options().reward_pool == RewardPool::mean ? batch.responses[response].count() : 1;
      const double reward = static_cast<double>(host_[response]) / divisor + static_cast<double>(bias);
      PairScores& pair = scores[response / 2];
      (response % 2 == 0 ? pair.reward_chosen : pair.reward_rejected) = reward;
    }
  }
}

View Policy::head_forward(const PackedBatch& batch, const CohortParameters& p, ConstView z, const Chunk& chunk,
                          std::span<PairScores> scores) {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  chunk_members_.clear();
  for (const MemberRows& member : batch.client_targets) {
    const std::int32_t begin = std::max(member.begin, chunk.target_begin);
    const std::int32_t end = std::min(member.end, chunk.target_end);
    // Members without rows stay: an overwritten gradient of theirs must become zero.
    const std::int32_t first = std::min(begin, end) - chunk.target_begin;
    if (begin < end) {
      chunk_members_.push_back({begin - chunk.target_begin, end - chunk.target_begin, member.slot});
    } else {
      chunk_members_.push_back({std::max(first, 0), std::max(first, 0), member.slot});
    }
  }
  ConstView rows{target_rows_.view().i32() + chunk.target_begin, 1, n, n, DType::i32};
  ConstView targets{target_tokens_.view().i32() + chunk.target_begin, 1, n, n, DType::i32};
  View z_rows = z_targets_.first(n), logits = logits_.first(n);
  View log_prob{log_prob_.view().data, 1, n, n, DType::f32}, lse{lse_.view().data, 1, n, n, DType::f32};
  backend_.gather_rows(z, rows, z_rows);
  heads_.logits(chunk_members_, p, z_rows, logits);
  backend_.log_softmax(logits, targets, log_prob, lse);
  host_.resize(std::max(host_.size(), static_cast<std::size_t>(n)));
  backend_.copy_to_host(host_.data(), log_prob.data, bytes_of(n));
  const auto sum = [&](std::int32_t begin, std::int32_t end) {
    double total = 0;
    for (std::int32_t i = begin; i < end; ++i)
      total += static_cast<double>(host_[static_cast<std::size_t>(i - chunk.target_begin)]);
    return total;
  };
  for (std::size_t i = chunk.pair_begin; i < chunk.pair_end; ++i) {
    const PackedPair& pair = batch.pairs[i];
    const double common = sum(pair.target_begin, pair.common_end);
    scores[i].log_prob_chosen = common + sum(pair.common_end, pair.chosen_end);
    scores[i].log_prob_rejected = common + sum(pair.chosen_end, pair.target_end);
    scores[i].length_chosen = pair.chosen_length;
    scores[i].length_rejected = pair.rejected_length;
  }
  return logits;
}

void Policy::score(const PackedBatch& batch, const CohortParameters& parameters, std::span<PairScores> scores,
                   const RowWeights& row_weights) {
  check(scores.size() == batch.pairs.size(), "score: one PairScores a pair");
  reserve(batch, false);
  ConstView h = decoder_.forward(view(batch, row_weights), parameters, Pass::evaluate);
  ConstView z = heads_.bottleneck(batch.clients, parameters, h);
  score_rewards(batch, parameters, z, scores);
  for (const Chunk& chunk : chunks(batch)) head_forward(batch, parameters, z, chunk, scores);
}

void Policy::train(const PackedBatch& batch, const CohortParameters& parameters, const CohortGradients& gradients,
                   const LossFunction& loss, std::span<PairScores> scores, const LoraDropout& dropout,
                   const RowWeights& row_weights) {
  check(scores.size() == batch.pairs.size(), "train: one PairScores a pair");
  reserve(batch, true);
  const bool through_backbone = gradients.wants_lora(parameters.adapter);
  const BatchView batch_view = view(batch, row_weights);
  ConstView h = decoder_.forward(batch_view, parameters, through_backbone ? Pass::train : Pass::evaluate, dropout);
  ConstView z = heads_.bottleneck(batch.clients, parameters, h);
  score_rewards(batch, parameters, z, scores);

  const std::int64_t rows = batch.num_rows();
  View d_z = d_z_.first(rows);
  backend_.fill(d_z, 0.0f);
  d_rewards_.assign(2 * batch.pairs.size(), 0.0);
  CohortGradients head_gradients = gradients;
  for (const Chunk& chunk : chunks(batch)) {
    View logits = head_forward(batch, parameters, z, chunk, scores);
    const std::int64_t n = chunk.target_end - chunk.target_begin;
    for (std::size_t i = chunk.pair_begin; i < chunk.pair_end; ++i) {
      const PackedPair& pair = batch.pairs[i];
      const PairLoss result = loss(i, scores[i]);
      d_rewards_[2 * i] = result.d_reward_chosen;
      d_rewards_[2 * i + 1] = result.d_reward_rejected;
      const auto set = [&](std::int32_t begin, std::int32_t end, double value) {
        std::fill(host_.begin() + (begin - chunk.target_begin), host_.begin() + (end - chunk.target_begin),
                  static_cast<float>(value));
      };
      set(pair.target_begin, pair.common_end, result.d_log_prob_chosen + result.d_log_prob_rejected);
      set(pair.common_end, pair.chosen_end, result.d_log_prob_chosen);
      set(pair.chosen_end, pair.target_end, result.d_log_prob_rejected);
    }
    View coefficient{coefficient_.view().data, 1, n, n, DType::f32};
    backend_.copy_to_device(coefficient.data, host_.data(), bytes_of(n));
    ConstView target_rows{target_rows_.view().i32() + chunk.target_begin, 1, n, n, DType::i32};
    ConstView targets{target_tokens_.view().i32() + chunk.target_begin, 1, n, n, DType::i32};
    ConstView lse{lse_.view().data, 1, n, n, DType::f32};
    backend_.log_softmax_backward(targets, lse, coefficient, logits);
    View d_rows = d_z_targets_.first(n);
    heads_.logits_backward(chunk_members_, parameters, head_gradients, z_targets_.first(n), logits, d_rows);
    backend_.scatter_add_rows(d_rows, target_rows, d_z);
    head_gradients.write = Write::accumulate;
  }
  if (layout_.has(Group::reward)) reward_backward(batch, parameters, gradients, d_z);

  View d_h = d_z;
  const bool privately =
      layout_.has(Group::reward) && layout_.options().reward_gradient == RewardGradient::private_only;
  if (privately && layout_.has(Group::bottleneck)) {
    // The reward's gradient reaches the bottleneck's parameters but not h: a pass of its own without d_h.
    CohortGradients again = gradients;
    heads_.bottleneck_backward(batch.clients, parameters, gradients, h, d_z_reward_.first(rows), nullptr);
    again.write = gradients.wants(Group::bottleneck) ? Write::accumulate : gradients.write;
    heads_.bottleneck_backward(batch.clients, parameters, again, h, d_z, through_backbone ? &d_h : nullptr);
  } else {
    heads_.bottleneck_backward(batch.clients, parameters, gradients, h, d_z, through_backbone ? &d_h : nullptr);
  }
  decoder_.backward(batch_view, parameters, gradients, d_h, dropout);
}

void Policy::reward_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g, View d_z) {
  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  const bool mean = layout_.options().reward_pool == RewardPool::mean;
  std::vector<float>& numbers = host_;
  numbers.resize(std::max(numbers.size(), static_cast<std::size_t>(responses)));
  View d_reward = d_reward_.first(responses), d_scaled = d_scaled_.first(responses);
  View d_pooled = d_pooled_.first(responses);
  for (std::size_t i = 0; i < batch.responses.size(); ++i) numbers[i] = static_cast<float>(d_rewards_[i]);
  backend_.copy_to_device(d_reward.data, numbers.data(), bytes_of(responses));
  if (mean)
    for (std::size_t i = 0; i < batch.responses.size(); ++i)
      numbers[i] = static_cast<float>(d_rewards_[i] / batch.responses[i].count());
  backend_.copy_to_device(d_scaled.data, numbers.data(), bytes_of(responses));
  heads_.rewards_backward(batch.client_responses, p, g, pooled_.first(responses), d_scaled, d_reward, d_pooled);
  if (layout_.options().reward_gradient == RewardGradient::none) return;

  View target = d_z;
  if (layout_.options().reward_gradient == RewardGradient::private_only) {
    if (!layout_.has(Group::bottleneck)) return;
    target = d_z_reward_.first(batch.num_rows());
    backend_.fill(target, 0.0f);
  }
  ConstView d_rows = d_pooled;
  if (mean) {
    View spread = response_z_.first(pooled_rows);
    backend_.gather_rows(d_pooled, index_view(response_of_row_, pooled_rows), spread);
    d_rows = spread;
  }
  backend_.scatter_add_rows(d_rows, index_view(response_rows_, pooled_rows), target);
}

}  // namespace fedpdpo
