// The rate of a backend's frozen products.
#include "product_rate.hpp"

#include <algorithm>
#include <chrono>

namespace fedpdpo {

ProductRate::ProductRate(Backend& backend, std::vector<ConstView> weights, std::int64_t rows)
    : backend_(&backend), weights_(std::move(weights)), rows_(rows) {
  std::int64_t widest_in = 0, widest_out = 0;
  for (const ConstView& w : weights_) {
    widest_in = std::max(widest_in, w.cols);
    widest_out = std::max(widest_out, w.rows);
    operations_ += 2.0 * static_cast<double>(rows) * static_cast<double>(w.size());
  }
  const bool half = weights_.front().dtype == DType::bf16 && backend.supports_bf16_activations();
  const DType activations = half ? DType::bf16 : DType::f32;
  x_ = Tensor(backend, rows, widest_in, activations);
  y_ = Tensor(backend, rows, widest_out, activations);
  fill_random(backend, x_.view(), {1, Purpose::bench, 0, 0, 1}, 0, 0.5);
  sweep();  // first use chooses algorithms and touches the memory
  backend.synchronize();
}

ProductRate ProductRate::of_layer(Backend& backend, const Weights& weights, std::int64_t rows) {
  const LayerWeights& layer = weights.layers.front();
  return {backend, {layer.weight.begin(), layer.weight.end()}, rows};
}

ProductRate ProductRate::of_large(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                                  std::int64_t inner) {
  Tensor weight(backend, cols, inner, dtype);
  fill_random(backend, weight.view(), {1, Purpose::bench, 0, 0, 2}, 0, 0.5);
  ProductRate rate(backend, {weight.view()}, rows);
  rate.own_weight_ = weight;
  return rate;
}

void ProductRate::sweep() {
  for (const ConstView& w : weights_) {
    const View x{x_.view().data, rows_, w.cols, w.cols, x_.view().dtype};
    const View y{y_.view().data, rows_, w.rows, w.rows, y_.view().dtype};
    backend_->linear(x, w, {}, y, Write::overwrite);
  }
}

double ProductRate::measure(double seconds) {
  using Clock = std::chrono::steady_clock;
  for (std::int64_t sweeps = 1;; sweeps *= 2) {
    const auto start = Clock::now();
    for (std::int64_t i = 0; i < sweeps; ++i) sweep();
    backend_->synchronize();
    const double passed = std::chrono::duration<double>(Clock::now() - start).count();
    if (passed >= seconds / 2) return static_cast<double>(sweeps) * operations_ / passed;
  }
}

}  // namespace fedpdpo
