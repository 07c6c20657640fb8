// Policy: the whole model of a cohort's members, backbone and private modules, as preference learning sees it: log pi
// of both responses of every pair and their rewards, and the gradient of a loss that is a function of these numbers.
//
// The LLM head runs on the rows that predict response tokens, in chunks of whole pairs, fused with log-softmax: T x V
// logits are never stored. The loss is asked, chunk by chunk, for the derivatives by log pi and reward.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "fedpdpo/data/packing.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "fedpdpo/model/heads.hpp"
#include "fedpdpo/train/losses.hpp"

namespace fedpdpo {

/// Weights of LoRA's outputs by row of a packed batch (LoraWeights on the host); empty lists: none.
struct RowWeights {
  std::vector<float> shared, personal;
};

class Policy {
 public:
  Policy(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout);

  /// Log-probabilities and rewards of the batch's pairs, in its order, into `scores` (their other fields are kept).
  void score(const PackedBatch& batch, const CohortParameters& parameters, std::span<PairScores> scores,
             const RowWeights& row_weights = {});

  /// For each pair the mean over its rows of the bare backbone's final hidden state, LoRA and private modules off:
  /// (pairs, d), row-major. Chosen and rejected count alike.
  std::vector<float> pair_embeddings(const PackedBatch& batch, const CohortParameters& parameters);

  /// The loss of pair i of the batch, whose scores are complete but for what the callee adds (the reference).
  using LossFunction = std::function<PairLoss(std::size_t pair, PairScores& scores)>;

  /// Forward and backward. Writes the gradients of the wanted groups; the derivatives that `loss` returns are taken as
  /// they are (the caller divides by the batch's size).
  void train(const PackedBatch& batch, const CohortParameters& parameters, const CohortGradients& gradients,
             const LossFunction& loss, std::span<PairScores> scores, const LoraDropout& dropout = {},
             const RowWeights& row_weights = {});

  /// Other weights of the same shapes for the backbone, from now on; the head stays the pretrained one.
  void use_backbone(const Weights& weights) { decoder_.use_weights(weights); }

  /// What batches for this policy must be packed with.
  PackingOptions packing() const { return {.keep_last_rows = layout_.has(Group::reward), .share_prefix = true}; }
  /// Bytes of buffers for batches of `rows` rows, for the plan.
  std::size_t buffer_bytes(std::int64_t rows, Pass pass) const;

 private:
  struct Chunk {
    std::size_t pair_begin, pair_end;
    std::int32_t target_begin, target_end;
  };

  BatchView view(const PackedBatch& batch, const RowWeights& row_weights);
  std::vector<Chunk> chunks(const PackedBatch& batch) const;
  void reserve(const PackedBatch& batch, bool train);
  void score_rewards(const PackedBatch& batch, const CohortParameters& p, ConstView z, std::span<PairScores> scores);
  void reward_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g, View d_z);
  View head_forward(const PackedBatch& batch, const CohortParameters& p, ConstView z, const Chunk& chunk,
                    std::span<PairScores> scores);
  View index_view(Tensor& tensor, std::int64_t n) { return {tensor.view().data, 1, n, n, DType::i32}; }

  Backend& backend_;
  const ModelConfig& config_;
  const ParameterLayout& layout_;
  Decoder decoder_;
  Heads heads_;

  std::int64_t chunk_rows_;
  Tensor target_rows_, target_tokens_, response_rows_, response_of_row_;  // i32
  Tensor shared_weights_, personal_weights_;                              // (T, 1)
  Tensor logits_, z_targets_, d_z_targets_, log_prob_, lse_, coefficient_;
  Tensor pooled_, response_z_, reward_, d_reward_, d_scaled_, d_pooled_, d_z_, d_z_reward_;
  std::vector<float> host_;        // log-probs, coefficients, rewards on the host
  std::vector<double> d_rewards_;  // (2 per pair)
  std::vector<std::int32_t> pool_rows_, pool_response_;
  std::vector<MemberRows> chunk_members_;
};

}  // namespace fedpdpo
