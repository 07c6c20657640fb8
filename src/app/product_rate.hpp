// The rate of a backend's frozen products on random data: what a step's rate is held against.
#pragma once

#include <vector>

#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

/// A list of products y = x W^T, timed one after another, with the memory they need. Activations are fp32 as in a
/// training step, so bf16 products include the rounding of x.
class ProductRate {
 public:
  /// The four products of a layer's weights with `rows` rows.
  static ProductRate of_layer(Backend& backend, const Weights& weights, std::int64_t rows);
  /// One large product of a random (cols, inner) weight of type `dtype` with `rows` rows: the ceiling.
  static ProductRate of_large(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t inner);

  /// Operations (multiplications and additions) a second, over about `seconds`; waits for the device only at the end
  /// of what it times.
  double measure(double seconds);
  /// Of its own buffers.
  std::size_t bytes() const { return x_.bytes() + y_.bytes() + own_weight_.bytes(); }

 private:
  ProductRate(Backend& backend, std::vector<ConstView> weights, std::int64_t rows);
  void sweep();

  Backend* backend_;
  std::vector<ConstView> weights_;
  std::int64_t rows_;
  double operations_ = 0;  // of one sweep over the products
  Tensor own_weight_, x_, y_;
};

}  // namespace fedpdpo
