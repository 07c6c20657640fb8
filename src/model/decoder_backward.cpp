// Decoder: the backward pass. With y = W0 x + s B (A x) and u = A x kept from the forward pass:
//   d_u = s w d_y B (w the row's weight, in u too),  d_B += s d_y^T u,  d_A += d_u^T x,  d_x = d_y W0 + d_u A.
// Norm and activation outputs are computed again rather than kept.
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/model/decoder.hpp"

namespace fedpdpo {

void Decoder::norm_backward(ConstView x, ConstView w, ConstView d_y, View d_x, Write mode) {
  if (config_.norm == NormKind::rms) {
    backend_.rms_norm_backward(x, w, config_.norm_eps, d_y, d_x, mode);
  } else {
    backend_.layer_norm_backward(x, w, config_.norm_eps, d_y, d_x, mode);
  }
}

/// LoRA's part of a block's backward, but for d_A: d_u, which stays for it, d_B, and d_x = d_u A where it is wanted.
void Decoder::lora_backward(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                            const LoraDropout& dropout, int layer, Block block, ConstView d_y, View* d_x) {
  const std::span<const LowRankSite> sites = lora_sites(p, g, p.adapter, layer, block);
  if (sites.empty()) return;
  const std::int64_t width = static_cast<std::int64_t>(sites.size()) * layout_.options().lora_rank;
  ConstView u = layers_[slot(layer)].low_rank[static_cast<std::size_t>(block)].first(d_y.rows);
  View d_u{d_low_rank_.view().data, d_y.rows, width, width, DType::f32};
  backend_.low_rank_up_backward(batch.members, layout_.lora_scale(), u, sites, d_y, d_u, g.write);
  if (batch.lora_weights.shared.data) backend_.scale_rows(batch.lora_weights.shared, d_u);
  if (!d_x) return;
  const ConstClientMatrix a = layout_.stacked_a(layer, block, p.adapter, p.values, p.slot_stride);
  View product = dropout.p > 0 ? activations(dropped_, d_x->rows, d_x->cols) : *d_x;
  backend_.grouped_matmul(batch.members, Multiply::by_matrix, 1.0f, d_u, a, product, Write::overwrite);
  if (dropout.p > 0) apply_dropout(batch, dropout, layer, block, product, *d_x, Write::overwrite);
}

/// True where lora_input() is to be given the block's input.
bool Decoder::wants_input(const CohortParameters& p, const CohortGradients& g, int layer, Block block) const {
  return g.wants(group_a(p.adapter)) && !layout_.sites(layer, block).empty();
}

/// d_A, from the block's input and the d_u that lora_backward() left.
void Decoder::lora_input(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                         const LoraDropout& dropout, int layer, Block block, ConstView x) {
  if (!wants_input(p, g, layer, block)) return;
  const std::int64_t width =
      static_cast<std::int64_t>(layout_.sites(layer, block).size()) * layout_.options().lora_rank;
  ConstView d_u{d_low_rank_.view().data, x.rows, width, width, DType::f32};
  if (dropout.p > 0) {
    View dropped = activations(dropped_, x.rows, x.cols);
    apply_dropout(batch, dropout, layer, block, x, dropped, Write::overwrite);
    x = dropped;
  }
  backend_.grouped_outer(batch.members, 1.0f, d_u, x,
                         layout_.stacked_a(layer, block, p.adapter, g.values, g.slot_stride), g.write);
}

/// The gradient of the stream, d_x, as a block's output gets it: in the dtype of activations.
ConstView Decoder::stream_gradient(View d_x) {
  if (activations_ == DType::f32) return d_x;
  View d_y = delta_.first(d_x.rows);
  backend_.copy(d_x, d_y);
  return d_y;
}

/// The backward of residual_norm(): d_sum += what comes through y, which is computed again. Returns d_sum as the block
/// below gets it.
ConstView Decoder::residual_norm_backward(ConstView sum, ConstView w, ConstView b, ConstView d_y, View d_sum, View y) {
  if (config_.norm == NormKind::rms && activations_ == DType::bf16) {
    View d_delta = delta_.first(sum.rows);
    backend_.residual_rms_norm_backward(sum, w, config_.norm_eps, d_y, d_sum, d_delta, y);
    return d_delta;
  }
  norm_backward(sum, w, d_y, d_sum, Write::accumulate);
  norm(sum, w, b, y);
  return stream_gradient(d_sum);
}

/// LoRA's part first, as in linear().
void Decoder::linear_backward(const BatchView& batch, const CohortParameters& p, const CohortGradients& g,
                              const LoraDropout& dropout, int layer, Block block, ConstView d_y, View d_x) {
  const LayerWeights& w = weights_->layers[static_cast<std::size_t>(layer)];
  lora_backward(batch, p, g, dropout, layer, block, d_y, &d_x);
  backend_.linear_backward(d_y, w.weight[static_cast<std::size_t>(block)], d_x,
                           layout_.sites(layer, block).empty() ? Write::overwrite : Write::accumulate);
}

void Decoder::backward(const BatchView& batch, const CohortParameters& parameters, const CohortGradients& gradients,
                       View d_h, const LoraDropout& dropout) {
  if (!gradients.wants_lora(parameters.adapter)) return;
  const std::int64_t rows = batch.num_rows();
  check(rows <= train_rows_ && d_h.rows == rows && d_h.cols == config_.hidden_size,
        "backward: not the batch of the last training forward pass");
  const auto head_dim = static_cast<std::int32_t>(config_.head_dim);
  const bool parallel = config_.residual == ResidualKind::parallel;
  RotaryRows rotary;
  if (config_.rotary_dim > 0)
    rotary = {{positions_.view().data, 1, rows, rows, DType::i32}, weights_->cos, weights_->sin};
  View normed = normed_.first(rows), activated = activated_.first(rows), d_normed = d_normed_.first(rows);
  const auto wide = [&](std::int64_t cols) { return activations(d_wide_, rows, cols); };
  const auto inner = [&](std::int64_t cols) { return activations(d_inner_, rows, cols); };

  // d_h becomes d_x, the gradient of the residual stream, and stays it all the way down.
  View d_x = d_h, d_hidden = hidden_.first(rows);
  backend_.copy(d_h, d_hidden);
  norm_backward(x_[slot(config_.num_layers - 1) + 1].first(rows), weights_->final_norm, d_hidden, d_x,
                Write::overwrite);
  ConstView d_delta = stream_gradient(d_x);

  const int lowest = layout_.lowest_lora_layer();
  for (auto layer = static_cast<int>(config_.num_layers) - 1; layer >= lowest; --layer) {
    const LayerWeights& w = weights_->layers[static_cast<std::size_t>(layer)];
    const LayerBuffers& buffers = layers_[slot(layer)];
    ConstView x = x_[slot(layer)].first(rows), up = buffers.up.first(rows);
    ConstView mlp_input = parallel ? x : buffers.middle.first(rows);
    ConstView attended = buffers.attention.first(rows), qkv = buffers.qkv.first(rows);
    const auto back = [&](Block block, ConstView d_y, View d_input) {
      linear_backward(batch, parameters, gradients, dropout, layer, block, d_y, d_input);
    };
    const auto with_input = [&](Block block, ConstView input) {
      lora_input(batch, parameters, gradients, dropout, layer, block, input);
    };

    View d_activated = inner(config_.intermediate_size), d_up = wide(config_.up_width());
    View again = wants_input(parameters, gradients, layer, Block::down) ? activated : View{};
    back(Block::down, d_delta, d_activated);
    if (config_.gated_mlp) {
      backend_.gated_activation_backward(config_.activation, up, d_activated, d_up, again);
    } else {
      backend_.activation_backward(config_.activation, up, d_activated, d_up, again);
    }
    with_input(Block::down, activated);
    back(Block::up, d_up, d_normed);
    // What both branches of a parallel residual get is d_x as it came.
    if (parallel) {
      norm(mlp_input, w.mlp_norm, w.mlp_norm_bias, normed);
    } else {
      d_delta = residual_norm_backward(mlp_input, w.mlp_norm, w.mlp_norm_bias, d_normed, d_x, normed);
    }
    with_input(Block::up, normed);

    View d_attended = inner(config_.num_heads * config_.head_dim), d_qkv = wide(config_.qkv_width());
    back(Block::output, d_delta, d_attended);
    with_input(Block::output, attended);
    if (parallel) norm_backward(mlp_input, w.mlp_norm, d_normed, d_x, Write::accumulate);
    backend_.attention_backward(batch.attention, attention_shape_, qkv, attended, buffers.lse.first(rows), d_attended,
                                d_qkv, rotary);
    View d_rotated = d_qkv.columns(0, config_.query_key_width());
    if (config_.head_norm)
      backend_.head_norm_backward(buffers.head_norm_input.first(rows), w.head_norm, head_dim, config_.norm_eps,
                                  d_rotated, d_rotated);
    if (layer == lowest) {
      norm(x, w.attention_norm, w.attention_norm_bias, normed);
      lora_backward(batch, parameters, gradients, dropout, layer, Block::qkv, d_qkv, nullptr);
    } else {
      back(Block::qkv, d_qkv, d_normed);
      d_delta = residual_norm_backward(x, w.attention_norm, w.attention_norm_bias, d_normed, d_x, normed);
    }
    with_input(Block::qkv, normed);
  }
}

}  // namespace fedpdpo
