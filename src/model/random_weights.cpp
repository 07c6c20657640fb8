// Random weights of a model's shape, written by the backend into its own memory: gigabytes in well under a second on a
// device, and never on the host.
#include <algorithm>
#include <cmath>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/model/weights.hpp"
#include "rotary_tables.hpp"

namespace fedpdpo {
namespace {

/// A prime, so that rows of any width begin at other places of the repeated numbers.
constexpr std::int64_t period = 262139;

View writable(ConstView view) { return {const_cast<void*>(view.data), view.rows, view.cols, view.stride, view.dtype}; }

View elements(View flat, std::int64_t begin, std::int64_t end) { return flat.columns(begin, end); }

}  // namespace

void fill_random(Backend& backend, View target, const StreamId& id, double mean, double bound) {
  check(target.contiguous(), "fill_random: a contiguous matrix");
  const std::int64_t size = target.size(), drawn = std::min(size, period);
  if (size == 0) return;
  RandomStream stream(id);
  std::vector<float> numbers(static_cast<std::size_t>(drawn));
  for (float& x : numbers) x = static_cast<float>(mean + bound * (2 * stream.uniform() - 1));
  const Tensor start(backend, 1, drawn);
  backend.copy_to_device(start.view().data, numbers.data(), start.bytes());
  const View flat{target.data, 1, size, size, target.dtype};
  backend.copy(start.view(), elements(flat, 0, drawn));
  for (std::int64_t filled = drawn; filled < size; filled *= 2) {
    const std::int64_t count = std::min(filled, size - filled);
    backend.copy(elements(flat, 0, count), elements(flat, filled, filled + count));
  }
}

Weights random_weights(Backend& backend, const ModelConfig& config, DType dtype, std::uint64_t seed,
                       std::byte* memory) {
  const Weights w = view_weights(config, dtype, memory);
  std::uint32_t part = 0;
  const auto fill = [&](ConstView view, double mean, double bound) {
    fill_random(backend, writable(view), {seed, Purpose::bench, 0, 0, part++}, mean, bound);
  };
  const auto matrix = [&](ConstView view) { fill(view, 0, std::sqrt(3.0 / static_cast<double>(view.cols))); };
  matrix(w.embedding);
  if (w.position_embedding.rows > 0) fill(w.position_embedding, 0, 0.02);
  for (const LayerWeights& l : w.layers) {
    fill(l.attention_norm, 1, 0.1);
    fill(l.mlp_norm, 1, 0.1);
    if (l.attention_norm_bias.cols > 0) fill(l.attention_norm_bias, 0, 0.1);
    if (l.mlp_norm_bias.cols > 0) fill(l.mlp_norm_bias, 0, 0.1);
    if (l.head_norm.cols > 0) fill(l.head_norm, 1, 0.1);
    for (std::size_t b = 0; b < num_blocks; ++b) {
      matrix(l.weight[b]);
      if (l.bias[b].cols > 0) fill(l.bias[b], 0, 0.1);
    }
  }
  fill(w.final_norm, 1, 0.1);
  if (w.final_norm_bias.cols > 0) fill(w.final_norm_bias, 0, 0.1);
  if (!config.tied_head) matrix(w.head);
  if (w.cos.rows > 0) {
    const RotaryTables tables = rotary_tables(config);
    backend.copy_to_device(const_cast<void*>(w.cos.data), tables.cos.data(), tables.cos.size() * sizeof(float));
    backend.copy_to_device(const_cast<void*>(w.sin.data), tables.sin.data(), tables.sin.size() * sizeof(float));
  }
  return w;
}

}  // namespace fedpdpo
