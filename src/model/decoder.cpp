// Decoder: buffers and the forward pass.
#include "fedpdpo/model/decoder.hpp"

#include <algorithm>
#include <cmath>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

std::size_t at(Block block) { return static_cast<std::size_t>(block); }

DType activations_for(const Backend& backend, const Weights& weights) {
  const bool half = weights.layers.front().weight.front().dtype == DType::bf16;
  return half && backend.supports_bf16_activations() ? DType::bf16 : DType::f32;
}

/// True where ranges in order, of columns or rows, leave none of `count` out.
template <class Range>
bool cover(std::span<const Range> ranges, std::int64_t count) {
  std::int64_t covered = 0;
  for (const Range& range : ranges)
    if (range.begin == covered) covered = range.end;
  return covered == count;
}

View indices(const Tensor& tensor, std::int64_t n) { return {tensor.view().data, 1, n, n, DType::i32}; }

}  // namespace

Decoder::Decoder(Backend& backend, const ModelConfig& config, const Weights& weights, const ParameterLayout& layout)
    : backend_(backend),
      config_(config),
      weights_(&weights),
      layout_(layout),
      activations_(activations_for(backend, weights)) {
  attention_shape_ = {static_cast<std::int32_t>(config.num_heads), static_cast<std::int32_t>(config.num_kv_heads),
                      static_cast<std::int32_t>(config.head_dim),
                      static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim)))};
}

void Decoder::use_weights(const Weights& weights) {
  weights_ = &weights;
  const DType wanted = activations_for(backend_, weights);
  if (wanted == activations_) return;
  activations_ = wanted;
  train_rows_ = evaluate_rows_ = 0;
  layers_.clear();
  for (Tensor* tensor : {&normed_, &activated_, &delta_, &d_wide_, &d_inner_, &d_normed_, &dropped_}) *tensor = {};
}

View Decoder::activations(const Tensor& tensor, std::int64_t rows, std::int64_t cols) const {
  return {tensor.view().data, rows, cols, cols, activations_};
}

/// Layers that keep activations have slots of their own; those below the lowest LoRA site share slot 0.
std::size_t Decoder::slot(std::int64_t layer) const {
  return static_cast<std::size_t>(std::max<std::int64_t>(0, layer - layout_.lowest_lora_layer()));
}

std::size_t Decoder::buffer_bytes(std::int64_t rows, Pass pass) const {
  const std::int64_t d = config_.hidden_size, inner = config_.intermediate_size, up = config_.up_width();
  std::int64_t low_rank = 0;
  for (int b = 0; b < num_blocks && layout_.lowest_lora_layer() < config_.num_layers; ++b)
    low_rank += static_cast<std::int64_t>(layout_.sites(layout_.lowest_lora_layer(), static_cast<Block>(b)).size()) *
                layout_.options().lora_rank;
  const std::int64_t attended = config_.num_heads * config_.head_dim;
  // By row: numbers of the dtype of activations, and f32 ones.
  const std::int64_t layer = config_.qkv_width() + attended + up, layer_f32 = config_.num_heads + low_rank;
  const auto kept = static_cast<std::int64_t>(pass == Pass::train ? slot(config_.num_layers - 1) + 1 : 1);
  std::int64_t numbers = kept * layer + d + inner, f32 = kept * layer_f32 + 2 * d;
  f32 += (config_.residual == ResidualKind::parallel ? 1 : kept) * d;
  if (activations_ == DType::bf16) numbers += d;
  if (layout_.options().lora_dropout > 0) numbers += std::max({d, inner, attended});
  if (pass == Pass::train) {
    numbers += std::max(up, config_.qkv_width()) + std::max(inner, attended) + d;
    if (config_.head_norm) numbers += kept * config_.query_key_width();
    f32 += kept * d + 7 * std::max(1, layout_.options().lora_rank);
  }
  return static_cast<std::size_t>(rows) *
         (static_cast<std::size_t>(numbers) * dtype_size(activations_) + static_cast<std::size_t>(f32) * sizeof(float));
}

void Decoder::reserve(std::int64_t rows, Pass pass) {
  std::int64_t& capacity = pass == Pass::train ? train_rows_ : evaluate_rows_;
  if (rows <= capacity) return;
  capacity = std::max(rows, capacity + capacity / 4);
  const std::int64_t rows_of_all = std::max(train_rows_, evaluate_rows_);
  const std::int64_t d = config_.hidden_size;
  const auto grow = [&](Tensor& tensor, std::int64_t n, std::int64_t cols, DType dtype = DType::f32) {
    if (cols > 0 && tensor.rows() < n) tensor = Tensor(backend_, n, cols, dtype);
  };
  grow(tokens_, rows_of_all, 1, DType::i32);
  grow(positions_, rows_of_all, 1, DType::i32);
  const std::size_t kept = train_rows_ > 0 ? slot(config_.num_layers - 1) + 1 : 1;
  layers_.resize(std::max(layers_.size(), kept));
  x_.resize(std::max(x_.size(), kept + 1));
  for (std::size_t i = 0; i < x_.size(); ++i) grow(x_[i], i == 0 ? rows_of_all : train_rows_, d);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::int64_t n = i == 0 ? rows_of_all : train_rows_;
    LayerBuffers& layer = layers_[i];
    grow(layer.qkv, n, config_.qkv_width(), activations_);
    grow(layer.attention, n, config_.num_heads * config_.head_dim, activations_);
    grow(layer.lse, n, config_.num_heads);
    // Sums after attention: backward() reads those of a sequential residual, through the MLP's norm.
    if (i == 0 || config_.residual == ResidualKind::sequential) grow(layer.middle, n, d);
    grow(layer.up, n, config_.up_width(), activations_);
    if (config_.head_norm && train_rows_ > 0)
      grow(layer.head_norm_input, train_rows_, config_.query_key_width(), activations_);
    const auto first = static_cast<int>(
        std::min<std::int64_t>(static_cast<std::int64_t>(i) + layout_.lowest_lora_layer(), config_.num_layers - 1));
    for (int b = 0; b < num_blocks; ++b)
      grow(layer.low_rank[static_cast<std::size_t>(b)], n,
           static_cast<std::int64_t>(layout_.sites(first, static_cast<Block>(b)).size()) * layout_.options().lora_rank);
  }
  const std::int64_t widest = std::max({d, config_.intermediate_size, config_.num_heads * config_.head_dim});
  grow(normed_, rows_of_all, d, activations_);
  if (activations_ == DType::bf16) grow(delta_, rows_of_all, d, activations_);
  grow(activated_, rows_of_all, config_.intermediate_size, activations_);
  grow(hidden_, rows_of_all, d);
  if (layout_.options().lora_dropout > 0) grow(dropped_, rows_of_all, widest, activations_);
  if (train_rows_ > 0) {
    grow(d_wide_, train_rows_, std::max(config_.up_width(), config_.qkv_width()), activations_);
    grow(d_inner_, train_rows_, std::max(config_.intermediate_size, config_.num_heads * config_.head_dim),
         activations_);
    grow(d_normed_, train_rows_, d, activations_);
    grow(d_low_rank_, train_rows_, 7 * std::max(1, layout_.options().lora_rank));
  }
}

void Decoder::norm(ConstView x, ConstView w, ConstView b, View y) {
  if (config_.norm == NormKind::rms) {
    backend_.rms_norm(x, w, config_.norm_eps, y);
  } else {
    backend_.layer_norm(x, w, b, config_.norm_eps, y);
  }
}

/// sum = x + delta, y = norm(sum).
void Decoder::residual_norm(ConstView x, ConstView delta, View sum, ConstView w, ConstView b, View y) {
  if (config_.norm == NormKind::rms && delta.dtype == y.dtype) {
    backend_.residual_rms_norm(x, delta, w, config_.norm_eps, sum, y);
  } else {
    backend_.add(x, delta, sum);
    norm(sum, w, b, y);
  }
}

void Decoder::activate(ConstView up, View y) {
  if (config_.gated_mlp) {
    backend_.gated_activation(config_.activation, up, y);
  } else {
    backend_.activation(config_.activation, up, y);
  }
}

void Decoder::apply_dropout(const BatchView& batch, const LoraDropout& dropout, int layer, Block block, ConstView x,
                            View y, Write mode) {
  // A site's mask lies in counters of its own: rows of a step stay far below 2^20.
  const std::int64_t site = (static_cast<std::int64_t>(layer) * num_blocks + static_cast<std::int64_t>(block)) << 20;
  for (std::size_t i = 0; i < batch.members.size(); ++i) {
    const MemberRows& m = batch.members[i];
    if (m.begin == m.end) continue;
    const std::int64_t first = dropout.first_rows.empty() ? 0 : dropout.first_rows[i];
    backend_.dropout(dropout.p, dropout.streams[i], site + first, x.row_range(m.begin, m.end),
                     y.row_range(m.begin, m.end), mode);
  }
}

std::span<const LowRankSite> Decoder::lora_sites(const CohortParameters& p, const CohortGradients& g, Adapter adapter,
                                                 int layer, Block block) {
  sites_.clear();
  for (const LoraSite& site : layout_.sites(layer, block)) {
    const int b = site.b_of(adapter);
    sites_.push_back({site.begin, site.end, site.u_begin, layout_.matrix(b, p.values, p.slot_stride), {}});
    if (g.wants(group_b(adapter))) sites_.back().d_b = layout_.matrix(b, g.values, g.slot_stride);
  }
  return sites_;
}

/// y (+)= s B u with u = w A x, w by row.
void Decoder::lora_term(const BatchView& batch, const CohortParameters& p, Adapter adapter, ConstView row_weights,
                        int layer, Block block, ConstView input, View u, View y, Write mode) {
  backend_.grouped_matmul(batch.members, Multiply::by_transpose, 1.0f, input,
                          layout_.stacked_a(layer, block, adapter, p.values, p.slot_stride), u, Write::overwrite);
  if (row_weights.data) backend_.scale_rows(row_weights, u);
  backend_.low_rank_up(batch.members, layout_.lora_scale(), u, lora_sites(p, {}, adapter, layer, block), y, mode);
}

void Decoder::lora_forward(const BatchView& batch, const CohortParameters& p, const LoraDropout& dropout, int layer,
                           Block block, LayerBuffers& buffers, ConstView x, View y, Write mode) {
  std::span<const LoraSite> sites = layout_.sites(layer, block);
  if (sites.empty()) return;
  View u = buffers.low_rank[at(block)].first(x.rows);
  ConstView input = x;
  if (dropout.p > 0) {
    View dropped = activations(dropped_, x.rows, x.cols);
    apply_dropout(batch, dropout, layer, block, x, dropped, Write::overwrite);
    input = dropped;
  }
  const LoraWeights& weights = batch.lora_weights;
  if (!weights.personal.data) {
    lora_term(batch, p, p.adapter, weights.shared, layer, block, input, u, y, mode);
    return;
  }
  lora_term(batch, p, Adapter::shared, weights.shared, layer, block, input, u, y, mode);
  lora_term(batch, p, Adapter::personal, weights.personal, layer, block, input, u, y, Write::accumulate);
}

/// LoRA's term comes first where its sites cover y: it is then written alone, and the large product adds to it while it
/// computes; a term that is added later reads y once more.
void Decoder::linear(const BatchView& batch, const CohortParameters& p, const LoraDropout& dropout, int layer,
                     Block block, LayerBuffers& buffers, ConstView x, View y) {
  const LayerWeights& w = weights_->layers[static_cast<std::size_t>(layer)];
  const bool term_first = cover(layout_.sites(layer, block), y.cols);
  if (term_first) lora_forward(batch, p, dropout, layer, block, buffers, x, y, Write::overwrite);
  backend_.linear(x, w.weight[at(block)], w.bias[at(block)], y, term_first ? Write::accumulate : Write::overwrite);
  if (!term_first) lora_forward(batch, p, dropout, layer, block, buffers, x, y, Write::accumulate);
}

void Decoder::load(const BatchView& batch, Pass pass) {
  const std::int64_t rows = batch.num_rows();
  check(rows > 0, "a batch without rows");
  reserve(rows, pass);
  const auto bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
  backend_.copy_to_device(tokens_.view().data, batch.tokens.data(), bytes);
  backend_.copy_to_device(positions_.view().data, batch.positions.data(), bytes);
  backend_.prepare(batch.attention);
}

ConstView Decoder::run(const BatchView& batch, const CohortParameters& parameters, Pass pass,
                       const LoraDropout& dropout) {
  const std::int64_t rows = batch.num_rows();
  check(rows <= (pass == Pass::train ? train_rows_ : evaluate_rows_), "run: the batch has not been loaded");
  check(layout_.options().lora_rank == 0 || cover(batch.members, rows), "run: rows that belong to no member");
  check(!batch.lora_weights.personal.data || pass == Pass::evaluate, "two LoRAs at once are for evaluation");
  View tokens = indices(tokens_, rows), positions = indices(positions_, rows);

  const bool keep = pass == Pass::train;
  const std::int64_t query_key = config_.query_key_width();
  const auto head_dim = static_cast<std::int32_t>(config_.head_dim);
  const bool half = activations_ == DType::bf16, parallel = config_.residual == ResidualKind::parallel;
  View normed = normed_.first(rows), activated = activated_.first(rows), hidden = hidden_.first(rows);
  backend_.embed(tokens, positions, weights_->embedding, weights_->position_embedding, x_[0].first(rows));
  norm(x_[0].first(rows), weights_->layers[0].attention_norm, weights_->layers[0].attention_norm_bias, normed);
  std::size_t input = 0;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    const LayerWeights& w = weights_->layers[static_cast<std::size_t>(layer)];
    const bool last = layer + 1 == config_.num_layers;
    const std::size_t s = keep ? slot(layer) : 0;
    // Below the lowest LoRA site (and when evaluating) the stream is updated in place.
    const bool keep_layer = keep && layer >= layout_.lowest_lora_layer();
    const std::size_t output = keep_layer ? s + 1 : input;
    LayerBuffers& buffers = layers_[s];
    View x = x_[input].first(rows), next = x_[output].first(rows);
    View qkv = buffers.qkv.first(rows), attended = buffers.attention.first(rows), up = buffers.up.first(rows);
    View middle = layers_[parallel ? 0 : s].middle.first(rows);

    linear(batch, parameters, dropout, layer, Block::qkv, buffers, normed, qkv);
    View rotated = qkv.columns(0, query_key);
    if (config_.head_norm) {
      View from = keep_layer ? buffers.head_norm_input.first(rows) : rotated;
      if (keep_layer) backend_.copy(rotated, from);
      backend_.head_norm(from, w.head_norm, head_dim, config_.norm_eps, rotated);
    }
    if (config_.rotary_dim > 0)
      backend_.rotate(positions, weights_->cos, weights_->sin, head_dim, Rotation::forward, rotated);
    backend_.attention(batch.attention, attention_shape_, qkv, attended, buffers.lse.first(rows));
    // In f32 what is added to the stream lies where the sum is to be.
    View delta = half ? delta_.first(rows) : middle;
    linear(batch, parameters, dropout, layer, Block::output, buffers, attended, delta);
    if (parallel) {
      backend_.add(x, delta, middle);
      norm(x, w.mlp_norm, w.mlp_norm_bias, normed);
    } else {
      residual_norm(x, delta, middle, w.mlp_norm, w.mlp_norm_bias, normed);
    }

    linear(batch, parameters, dropout, layer, Block::up, buffers, normed, up);
    activate(up, activated);
    delta = half ? delta_.first(rows) : next;
    linear(batch, parameters, dropout, layer, Block::down, buffers, activated, delta);
    if (last) {
      residual_norm(middle, delta, next, weights_->final_norm, weights_->final_norm_bias, hidden);
    } else {
      const LayerWeights& following = weights_->layers[static_cast<std::size_t>(layer) + 1];
      residual_norm(middle, delta, next, following.attention_norm, following.attention_norm_bias, normed);
    }
    input = output;
  }
  return hidden;
}

}  // namespace fedpdpo
