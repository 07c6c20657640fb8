// Decoder: the backbone's forward and backward pass over a packed batch of a cohort, LoRA included, written by hand
// once for all families and backends. Weights are frozen: there are gradients of activations and of LoRA, nothing else.
//
//   h = norm(x_L),  x_{l+1} = x_l + attention(norm(x_l)) + mlp(norm(...)),  y = W0 x + s B (A x) at every LoRA site
//   with x_l (parallel residual) or x_l + attention(norm(x_l)) (sequential) in the MLP's norm
//
// Layers below the lowest LoRA site have no backward pass and keep no activations. The residual stream and its gradient
// are f32; what lies between norms and linear maps is bf16 where the weights are and the backend takes it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/model/layout.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

/// Weights of LoRA's outputs by row of the batch, (1, T) on the device. Views without data: the pass's adapter counts
/// in full, the other one not at all. With `personal` (evaluation alone) both count.
struct LoraWeights {
  ConstView shared, personal;
};

/// What the decoder reads of a packed batch (data/packing.hpp).
struct BatchView {
  std::span<const std::int32_t> tokens;     // (T)
  std::span<const std::int32_t> positions;  // (T)
  AttentionPlan attention;
  std::span<const MemberRows> members;
  LoraWeights lora_weights{};

  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens.size()); }
};

/// Trainables of a cohort: slot s begins at values + s * slot_stride, in the layout's order.
struct CohortParameters {
  const float* values = nullptr;
  std::int64_t slot_stride = 0;
  Adapter adapter = Adapter::shared;  ///< the LoRA that a pass runs with and trains
};

/// Gradients in the same places; `write` says what the first writer of an element does.
struct CohortGradients {
  float* values = nullptr;
  std::int64_t slot_stride = 0;
  Write write = Write::accumulate;
  std::array<bool, num_groups> wanted{};  ///< by Group; the others are neither computed nor touched

  bool wants(Group group) const { return wanted[static_cast<std::size_t>(group)]; }
  bool wants_lora(Adapter adapter) const { return wants(group_a(adapter)) || wants(group_b(adapter)); }
};

/// Dropout on the input of LoRA's A, one stream per member of the batch; p = 0 for none.
struct LoraDropout {
  float p = 0;
  std::span<const StreamId> streams;
  std::span<const std::int64_t> first_rows;  ///< by member: its rows in earlier micro-batches of the step; empty: none
};

enum class Pass : std::uint8_t {
  evaluate,  ///< keeps nothing
  train,     ///< keeps what backward() needs
};

class Decoder {
 public:
  /// All arguments outlive the decoder.
  Decoder(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout);

  /// Other weights of the same shapes for the passes to come (a backbone that moves); they outlive their use.
  void use_weights(const Weights& weights);

  /// Uploads a batch's tokens, positions and attention plan for the passes to come. Buffers grow to the largest batch
  /// seen and are then reused.
  void load(const BatchView& batch, Pass pass);
  /// Final normed hidden states (T, d) of the loaded batch, valid until the next call.
  ConstView run(const BatchView& batch, const CohortParameters& parameters, Pass pass, const LoraDropout& dropout = {});
  /// load() and run().
  ConstView forward(const BatchView& batch, const CohortParameters& parameters, Pass pass,
                    const LoraDropout& dropout = {}) {
    load(batch, pass);
    return run(batch, parameters, pass, dropout);
  }
  /// After run(..., Pass::train) of the same batch: takes d_h (T, d), which it overwrites, and writes the gradients
  /// of the LoRA groups that are wanted.
  void backward(const BatchView& batch, const CohortParameters& parameters, const CohortGradients& gradients, View d_h,
                const LoraDropout& dropout = {});

  /// Bytes that the buffers for batches of `rows` rows take.
  std::size_t buffer_bytes(std::int64_t rows, Pass pass) const;

 private:
  struct LayerBuffers {
    Tensor qkv, attention, lse, middle, up;   // (T, qkv), (T, H hd), (T, H) f32, (T, d) f32, (T, up)
    Tensor head_norm_input;                   // (T, (H + H_kv) hd), where heads are normed: kept in training alone
    std::array<Tensor, num_blocks> low_rank;  // (T, sites * r) f32: A x of the block's sites
  };
  void reserve(std::int64_t rows, Pass pass);
  std::size_t slot(std::int64_t layer) const;
  void norm(ConstView x, ConstView w, ConstView b, View y);
  void residual_norm(ConstView x, ConstView delta, View sum, ConstView w, ConstView b, View y);
  View activations(const Tensor& tensor, std::int64_t rows, std::int64_t cols) const;
  void norm_backward(ConstView x, ConstView w, ConstView d_y, View d_x, Write mode);
  void activate(ConstView up, View y);
  /// A block's sites with their factors B, and the gradients of these where they are wanted.
  std::span<const LowRankSite> lora_sites(const CohortParameters& p, const CohortGradients& g, Adapter adapter,
                                          int layer, Block block);
  void lora_term(const BatchView& batch, const CohortParameters& p, Adapter adapter, ConstView row_weights, int layer,
                 Block block, ConstView input, View u, View y, Write mode);
  void lora_forward(const BatchView& batch, const CohortParameters& p, const LoraDropout& dropout, int layer,
                    Block block, LayerBuffers& buffers, ConstView x, View y, Write mode);
  void lora_backward(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                     const LoraDropout& dropout, int layer, Block block, ConstView d_y, View* d_x);
  bool wants_input(const CohortParameters& p, const CohortGradients& g, int layer, Block block) const;
  void lora_input(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                  const LoraDropout& dropout, int layer, Block block, ConstView x);
  ConstView stream_gradient(View d_x);
  ConstView residual_norm_backward(ConstView sum, ConstView w, ConstView b, ConstView d_y, View d_sum, View y);
  void apply_dropout(const BatchView& batch, const LoraDropout& dropout, int layer, Block block, ConstView x, View y,
                     Write mode);
  void linear(const BatchView& batch, const CohortParameters& p, const LoraDropout& dropout, int layer, Block block,
              LayerBuffers& buffers, ConstView x, View y);
  void linear_backward(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                       const LoraDropout& dropout, int layer, Block block, ConstView d_y, View d_x);

  Backend& backend_;
  const ModelConfig& config_;
  const Weights* weights_;
  const ParameterLayout& layout_;
  AttentionShape attention_shape_;
  DType activations_;

  std::int64_t evaluate_rows_ = 0, train_rows_ = 0;  // capacity of the buffers
  Tensor tokens_, positions_;                        // (1, T) i32
  std::vector<Tensor> x_;                            // residual stream at the layers' inputs, (T, d)
  std::vector<LayerBuffers> layers_;
  Tensor normed_, activated_, hidden_;  // (T, d), (T, I), (T, d) f32
  Tensor delta_;                        // (T, d) of bf16 activations: what a block adds to the stream, and its gradient
  Tensor d_wide_, d_inner_, d_normed_, d_low_rank_, dropped_;
  std::vector<LowRankSite> sites_;
};

}  // namespace fedpdpo
