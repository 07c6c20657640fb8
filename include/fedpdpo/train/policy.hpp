// Policy: the whole model of a cohort's members, backbone and private modules, as preference learning sees it: log pi
// of both responses of every pair and their rewards, and the gradient of a loss that is a function of these numbers.
//
// The LLM head runs on the rows that predict response tokens, in chunks of whole pairs, fused with log-softmax: T x V
// logits are never stored. The loss is asked, chunk by chunk, for the derivatives by log pi and reward.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
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
  /// they are (the caller divides by the batch's size). Passes over batches that are filled up to size classes, so that
  /// their shapes recur, are recorded and given again (Backend::run), where their targets fit one chunk and there is no
  /// dropout.
  void train(const PackedBatch& batch, const CohortParameters& parameters, const CohortGradients& gradients,
             const LossFunction& loss, std::span<PairScores> scores, const LoraDropout& dropout = {},
             const RowWeights& row_weights = {});

  /// Other weights of the same shapes for the backbone, from now on; the head stays the pretrained one.
  void use_backbone(const Weights& weights) {
    backbone_ = &weights;
    decoder_.use_weights(weights);
  }

  /// What batches for this policy must be packed with.
  PackingOptions packing() const { return {.keep_last_rows = layout_.has(Group::reward), .share_prefix = true}; }
  /// Bytes of buffers for batches of `rows` rows, for the plan.
  std::size_t buffer_bytes(std::int64_t rows, Pass pass) const;

 private:
  struct Chunk {
    std::size_t pair_begin, pair_end;
    std::int32_t target_begin, target_end;
  };

  /// A training pass's work in two parts, the loss between them.
  struct Recorded {
    std::unique_ptr<Recording> forward, backward;
    ConstView h, z;
    std::int64_t last_used = 0;
  };
  using ShapeKey = std::vector<std::int64_t>;

  BatchView load(const PackedBatch& batch, const RowWeights& row_weights, Pass pass);
  void list_pooled_rows(const PackedBatch& batch);
  std::vector<Chunk> chunks(const PackedBatch& batch) const;
  void reserve(const PackedBatch& batch, bool train);
  void cut_members(const PackedBatch& batch, const Chunk& chunk);
  Recorded* recorded(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g,
                     const RowWeights& row_weights);

  // Work on the device alone, without numbers to or from the host.
  void rewards(const PackedBatch& batch, const CohortParameters& p, ConstView z);
  void head_forward(const CohortParameters& p, ConstView z, const Chunk& chunk, View log_prob);
  void head_backward(const CohortParameters& p, const CohortGradients& g, const Chunk& chunk, View d_z);
  void reward_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g, View d_z);
  void modules_backward(const PackedBatch& batch, const CohortParameters& p, const CohortGradients& g, ConstView h,
                        View* d_h);

  enum class Read : std::uint8_t { log_probs, rewards_too };
  void read_scores(const PackedBatch& batch, const Chunk& chunk, Read what, std::span<PairScores> scores);
  void ask_loss(const PackedBatch& batch, const Chunk& chunk, const LossFunction& loss, std::span<PairScores> scores);
  void upload_reward_derivatives(const PackedBatch& batch);

  std::int64_t num_rewards(const PackedBatch& batch) const;
  /// Rows of logits begin at whole 64 bytes, so that products and kernels write and read them by whole vectors.
  std::int64_t logits_stride() const { return (config_.vocab_size + 15) / 16 * 16; }
  View logits(std::int64_t rows) const { return logits_.first(rows).columns(0, config_.vocab_size); }
  View log_probs(const PackedBatch& batch, const Chunk& chunk) const;
  ConstView target_indices(const Tensor& tensor, const Chunk& chunk) const;
  View index_view(Tensor& tensor, std::int64_t n) { return {tensor.view().data, 1, n, n, DType::i32}; }

  Backend& backend_;
  const ModelConfig& config_;
  const ParameterLayout& layout_;
  Decoder decoder_;
  Heads heads_;

  std::int64_t chunk_rows_;
  const Weights* backbone_;
  std::map<ShapeKey, Recorded> recordings_;
  std::int64_t passes_ = 0;

  Tensor target_rows_, target_tokens_, response_rows_, response_of_row_, slots_;  // i32
  Tensor shared_weights_, personal_weights_;                                      // (T, 1)
  Tensor logits_, z_targets_, d_z_targets_, lse_, coefficient_;
  Tensor scores_;  // (n, 1): rewards by response without their biases, biases by member, log-probs by target
  Tensor pooled_, response_z_, d_reward_, d_scaled_, d_pooled_, d_z_, d_z_reward_;
  std::vector<float> host_;        // scores, coefficients, rewards on the host
  std::vector<double> d_rewards_;  // (2 per pair)
  std::vector<std::int32_t> pool_rows_, pool_response_;
  std::vector<MemberRows> chunk_members_;
};

}  // namespace fedpdpo
