// Policy: buffers, uploads, scores to the host, derivatives back, and which passes are recorded.
#include <algorithm>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/train/policy.hpp"

namespace fedpdpo {
namespace {

/// Recordings that are kept; a graph of a small model takes some MB.
constexpr std::size_t most_recordings = 64;

std::size_t bytes_of(std::int64_t n) { return static_cast<std::size_t>(n) * 4; }

}  // namespace

std::size_t Policy::buffer_bytes(std::int64_t rows, Pass pass) const {
  const std::int64_t head = std::min(rows, chunk_rows_) * (logits_stride() + 2 * config_.hidden_size);
  const std::int64_t modules = rows * (4 * config_.hidden_size + 3 * layout_.options().bottleneck);
  return decoder_.buffer_bytes(rows, pass) + bytes_of(head + modules);
}

void Policy::reserve(const PackedBatch& batch, bool train) {
  list_pooled_rows(batch);
  const auto grow = [&](Tensor& tensor, std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    if (tensor.rows() < rows || tensor.cols() != cols)
      tensor = Tensor(backend_, std::max(rows, tensor.rows() + tensor.rows() / 4), cols, dtype);
  };
  std::int64_t chunk = 0;
  for (const Chunk& c : chunks(batch)) chunk = std::max<std::int64_t>(chunk, c.target_end - c.target_begin);
  const std::int64_t d = config_.hidden_size, targets = batch.num_targets(), rewards = num_rewards(batch);
  grow(target_rows_, targets, 1, DType::i32);
  grow(target_tokens_, targets, 1, DType::i32);
  grow(logits_, chunk, logits_stride());
  grow(z_targets_, chunk, d);
  grow(scores_, rewards + chunk, 1);
  grow(lse_, chunk, 1);
  if (train) {
    grow(d_z_targets_, chunk, d);
    grow(coefficient_, chunk, 1);
    grow(d_z_, batch.num_rows(), d);
  }
  if (rewards == 0) return;
  const auto responses = static_cast<std::int64_t>(batch.responses.size());
  const auto pooled_rows = static_cast<std::int64_t>(pool_rows_.size());
  grow(slots_, static_cast<std::int64_t>(batch.client_responses.size()), 1, DType::i32);
  grow(response_rows_, pooled_rows, 1, DType::i32);
  grow(response_of_row_, pooled_rows, 1, DType::i32);
  grow(response_z_, pooled_rows, d);
  grow(pooled_, responses + 1, d);
  if (train) {
    grow(d_reward_, responses, 1);
    grow(d_scaled_, responses, 1);
    grow(d_pooled_, responses + 1, d);
    grow(d_z_reward_, batch.num_rows(), d);
  }
}

/// The rows that each response's reward is pooled over, and whose they are.
void Policy::list_pooled_rows(const PackedBatch& batch) {
  pool_rows_.clear();
  pool_response_.clear();
  if (!layout_.has(Group::reward)) return;
  for (std::size_t i = 0; i < batch.responses.size(); ++i) {
    const ResponseRows& rows = batch.responses[i];
    check(rows.count() > 0, "a batch for a reward head must keep the responses' last rows");
    if (layout_.options().reward_pool == RewardPool::last) {
      pool_rows_.push_back(rows.last());
    } else {
      for (std::int32_t r = rows.common_begin; r < rows.common_end; ++r) pool_rows_.push_back(r);
      for (std::int32_t r = rows.own_begin; r < rows.own_end; ++r) pool_rows_.push_back(r);
    }
    pool_response_.resize(pool_rows_.size(), static_cast<std::int32_t>(i));
  }
  if (layout_.options().reward_pool == RewardPool::last || batch.filling == Filling::none) return;
  // Up to a size that recurs with the batch's first row, for a response of its own after all others.
  pool_rows_.resize(static_cast<std::size_t>(size_class(static_cast<std::int32_t>(pool_rows_.size()))), 0);
  pool_response_.resize(pool_rows_.size(), static_cast<std::int32_t>(batch.responses.size()));
}

BatchView Policy::load(const PackedBatch& batch, const RowWeights& row_weights, Pass pass) {
  const auto put = [&](Tensor& tensor, std::span<const std::int32_t> indices) {
    backend_.copy_to_device(tensor.view().data, indices.data(), indices.size_bytes());
  };
  put(target_rows_, batch.target_rows);
  put(target_tokens_, batch.target_tokens);
  if (layout_.has(Group::reward)) {
    put(response_rows_, pool_rows_);
    put(response_of_row_, pool_response_);
    std::vector<std::int32_t> slots;
    for (const MemberRows& member : batch.client_responses) slots.push_back(member.slot);
    put(slots_, slots);
  }
  const auto weights = [&](Tensor& tensor, const std::vector<float>& by_row) -> ConstView {
    if (by_row.empty()) return {};
    const auto n = static_cast<std::int64_t>(by_row.size());
    check(n == batch.num_rows(), "row weights: one a row");
    if (tensor.rows() < n) tensor = Tensor(backend_, n, 1);
    backend_.copy_to_device(tensor.view().data, by_row.data(), bytes_of(n));
    return {tensor.view().data, 1, n, n, DType::f32};
  };
  const BatchView view{
      batch.tokens,
      batch.positions,
      {batch.segments, batch.segment_groups},
      batch.clients,
      {weights(shared_weights_, row_weights.shared), weights(personal_weights_, row_weights.personal)}};
  decoder_.load(view, pass);
  return view;
}

/// The members' targets in a chunk. Members without rows stay: an overwritten gradient of theirs must become zero.
void Policy::cut_members(const PackedBatch& batch, const Chunk& chunk) {
  chunk_members_.clear();
  for (const MemberRows& member : batch.client_targets) {
    const std::int32_t begin = std::max(member.begin, chunk.target_begin);
    const std::int32_t end = std::min(member.end, chunk.target_end);
    const std::int32_t first = std::max(std::min(begin, end) - chunk.target_begin, 0);
    chunk_members_.push_back({first, begin < end ? end - chunk.target_begin : first, member.slot});
  }
}

/// The recording of passes of this shape, or nullptr where they are not recorded.
Policy::Recorded* Policy::recorded(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g,
                                   const RowWeights& row_weights) {
  if (batch.filling == Filling::none || !backend_.supports_recording()) return nullptr;
  const auto address = [](const void* pointer) {
    return static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(pointer));
  };
  ShapeKey key{batch.num_rows(),
               batch.num_targets(),
               static_cast<std::int64_t>(batch.segments.size()),
               static_cast<std::int64_t>(batch.responses.size()),
               static_cast<std::int64_t>(pool_rows_.size()),
               address(p.values),
               p.slot_stride,
               static_cast<std::int64_t>(p.adapter),
               address(g.values),
               g.slot_stride,
               static_cast<std::int64_t>(g.write),
               address(backbone_),
               row_weights.shared.empty(),
               row_weights.personal.empty()};
  for (const bool wanted : g.wanted) key.push_back(wanted);
  for (const auto* members : {&batch.clients, &batch.client_targets, &batch.client_responses})
    for (const MemberRows& member : *members) key.insert(key.end(), {member.begin, member.end, member.slot});
  const auto [place, is_new] = recordings_.try_emplace(std::move(key));
  Recorded& found = place->second;
  found.last_used = ++passes_;
  if (!is_new) return &found;
  found.forward = backend_.make_recording();
  found.backward = backend_.make_recording();
  if (recordings_.size() > most_recordings)
    recordings_.erase(std::ranges::min_element(recordings_, {}, [](const auto& r) { return r.second.last_used; }));
  return &found;
}

std::int64_t Policy::num_rewards(const PackedBatch& batch) const {
  if (!layout_.has(Group::reward)) return 0;
  return static_cast<std::int64_t>(batch.responses.size() + batch.client_responses.size());
}

View Policy::log_probs(const PackedBatch& batch, const Chunk& chunk) const {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  return {scores_.view().f32() + num_rewards(batch), 1, n, n, DType::f32};
}

ConstView Policy::target_indices(const Tensor& tensor, const Chunk& chunk) const {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  return {tensor.view().i32() + chunk.target_begin, 1, n, n, DType::i32};
}

void Policy::read_scores(const PackedBatch& batch, const Chunk& chunk, Read what, std::span<PairScores> scores) {
  const std::int64_t rewards = num_rewards(batch), n = chunk.target_end - chunk.target_begin;
  const std::int64_t first = what == Read::rewards_too ? 0 : rewards;
  host_.resize(std::max(host_.size(), static_cast<std::size_t>(rewards + n)));
  backend_.copy_to_host(host_.data() + first, scores_.view().f32() + first, bytes_of(rewards + n - first));
  if (what == Read::rewards_too && rewards > 0) {
    const std::size_t num_responses = batch.responses.size();
    for (std::size_t m = 0; m < batch.client_responses.size(); ++m)
      for (std::int32_t i = batch.client_responses[m].begin; i < batch.client_responses[m].end; ++i) {
        const auto response = static_cast<std::size_t>(i);
        const double divisor =
            layout_.options().reward_pool == RewardPool::mean ? batch.responses[response].count() : 1;
        const double reward =
            static_cast<double>(host_[response]) / divisor + static_cast<double>(host_[num_responses + m]);
        PairScores& pair = scores[response / 2];
        (response % 2 == 0 ? pair.reward_chosen : pair.reward_rejected) = reward;
      }
  }
  const auto sum = [&](std::int32_t begin, std::int32_t end) {
    double total = 0;
    for (std::int32_t i = begin; i < end; ++i)
      total += static_cast<double>(host_[static_cast<std::size_t>(rewards + i - chunk.target_begin)]);
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
}

/// The loss of a chunk's pairs, and its derivatives by log-probs to the device.
void Policy::ask_loss(const PackedBatch& batch, const Chunk& chunk, const LossFunction& loss,
                      std::span<PairScores> scores) {
  const std::int64_t n = chunk.target_end - chunk.target_begin;
  host_.resize(std::max(host_.size(), static_cast<std::size_t>(n)));
  std::fill_n(host_.begin(), n, 0.0f);  // targets of no pair
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
  backend_.copy_to_device(coefficient_.view().data, host_.data(), bytes_of(n));
}

void Policy::upload_reward_derivatives(const PackedBatch& batch) {
  if (!layout_.has(Group::reward)) return;
  const std::size_t responses = batch.responses.size();
  host_.resize(std::max(host_.size(), responses));
  const auto put = [&](Tensor& tensor, auto value) {
    for (std::size_t i = 0; i < responses; ++i) host_[i] = static_cast<float>(value(i));
    backend_.copy_to_device(tensor.view().data, host_.data(), responses * sizeof(float));
  };
  const bool mean = layout_.options().reward_pool == RewardPool::mean;
  put(d_reward_, [&](std::size_t i) { return d_rewards_[i]; });
  put(d_scaled_, [&](std::size_t i) { return mean ? d_rewards_[i] / batch.responses[i].count() : d_rewards_[i]; });
}

}  // namespace fedpdpo
