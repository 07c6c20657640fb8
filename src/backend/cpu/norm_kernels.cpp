// Norms by rows. With s = 1 / sqrt(mean(x^2) + eps), g = d_y w and n = x s:
//   RMS:    y = n w                    d_x = s (g - n mean(g n))
//   layer:  x first less its mean      d_x = s (g - mean(g) - n mean(g n))
//   head:   RMS of each head's columns alone
#include <cmath>

#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/norm_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

HWY_INLINE float inverse_rms(const float* x, std::int64_t cols, float mean, float eps) {
  const Vec shift = splat(mean);
  const float squares = sum_columns(cols, [&](auto io, std::int64_t c) HWY_ATTR {
    const Vec v = hn::Sub(io.load(x + c), shift);
    return hn::Mul(v, v);
  });
  return 1.0f / std::sqrt(squares / static_cast<float>(cols) + eps);
}

HWY_INLINE float mean_of(const float* x, std::int64_t cols) {
  const float sum = sum_columns(cols, [&](auto io, std::int64_t c) HWY_ATTR { return io.load(x + c); });
  return sum / static_cast<float>(cols);
}

HWY_INLINE void rms_norm_row(const float* x, const float* w, std::int64_t cols, float eps, float* y) {
  const Vec s = splat(inverse_rms(x, cols, 0, eps));
  for_columns(cols, [&](auto io, std::int64_t c)
                        HWY_ATTR { io.store(hn::Mul(hn::Mul(io.load(x + c), s), io.load(w + c)), y + c); });
}

void RmsNorm(ConstView x, ConstView w, float eps, View y) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    rms_norm_row(x.f32() + t * x.stride, w.f32(), x.cols, eps, y.f32() + t * y.stride);
}

void HeadNorm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (std::int64_t c = 0; c < x.cols; c += head_dim)
      rms_norm_row(x.f32() + t * x.stride + c, w.f32() + c, head_dim, eps, y.f32() + t * y.stride + c);
}

void LayerNorm(ConstView x, ConstView w, ConstView b, float eps, View y) {
  const std::int64_t cols = x.cols;
  const float* w_row = w.f32();
  const float* b_row = b.f32();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    float* y_row = y.f32() + t * y.stride;
    const float mean = mean_of(x_row, cols);
    const Vec s = splat(inverse_rms(x_row, cols, mean, eps));
    const Vec shift = splat(mean);
    for_columns(cols, [&](auto io, std::int64_t c) HWY_ATTR {
      const Vec n = hn::Mul(hn::Sub(io.load(x_row + c), shift), s);
      io.store(hn::MulAdd(n, io.load(w_row + c), io.load(b_row + c)), y_row + c);
    });
  }
}

// d_x of a row; mean and mean_g are zero for the RMS norm.
HWY_INLINE void norm_backward_row(const float* x, const float* w, const float* d_y, std::int64_t cols, float mean,
                                  float s, float mean_g, Write mode, float* d_x) {
  const Vec shift = splat(mean), scale = splat(s), g_shift = splat(mean_g);
  const float dot = sum_columns(cols, [&](auto io, std::int64_t c) HWY_ATTR {
    const Vec n = hn::Mul(hn::Sub(io.load(x + c), shift), scale);
    return hn::Mul(hn::Mul(io.load(d_y + c), io.load(w + c)), n);
  });
  const Vec slope = splat(dot / static_cast<float>(cols));
  for_columns(cols, [&](auto io, std::int64_t c) HWY_ATTR {
    const Vec n = hn::Mul(hn::Sub(io.load(x + c), shift), scale);
    const Vec g = hn::Sub(hn::Mul(io.load(d_y + c), io.load(w + c)), g_shift);
    const Vec gradient = hn::Mul(scale, hn::NegMulAdd(n, slope, g));
    io.store(mode == Write::accumulate ? hn::Add(io.load(d_x + c), gradient) : gradient, d_x + c);
  });
}

void RmsNormBackward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    norm_backward_row(x_row, w.f32(), d_y.f32() + t * d_y.stride, x.cols, 0, inverse_rms(x_row, x.cols, 0, eps), 0,
                      mode, d_x.f32() + t * d_x.stride);
  }
}

void HeadNormBackward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y, View d_x) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (std::int64_t c = 0; c < x.cols; c += head_dim) {
      const float* x_head = x.f32() + t * x.stride + c;
      norm_backward_row(x_head, w.f32() + c, d_y.f32() + t * d_y.stride + c, head_dim, 0,
                        inverse_rms(x_head, head_dim, 0, eps), 0, Write::overwrite, d_x.f32() + t * d_x.stride + c);
    }
}

void LayerNormBackward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  const float* w_row = w.f32();
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    const float* d_y_row = d_y.f32() + t * d_y.stride;
    const float mean = mean_of(x_row, x.cols);
    const float sum_g = sum_columns(
        x.cols, [&](auto io, std::int64_t c) HWY_ATTR { return hn::Mul(io.load(d_y_row + c), io.load(w_row + c)); });
    norm_backward_row(x_row, w_row, d_y_row, x.cols, mean, inverse_rms(x_row, x.cols, mean, eps),
                      sum_g / static_cast<float>(x.cols), mode, d_x.f32() + t * d_x.stride);
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(LayerNorm);
HWY_EXPORT(RmsNormBackward);
HWY_EXPORT(LayerNormBackward);
HWY_EXPORT(HeadNorm);
HWY_EXPORT(HeadNormBackward);

void rms_norm(ConstView x, ConstView w, float eps, View y) { HWY_DYNAMIC_DISPATCH(RmsNorm)(x, w, eps, y); }
void rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackward)(x, w, eps, d_y, d_x, mode);
}
void layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) {
  HWY_DYNAMIC_DISPATCH(LayerNorm)(x, w, b, eps, y);
}
void layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  HWY_DYNAMIC_DISPATCH(LayerNormBackward)(x, w, eps, d_y, d_x, mode);
}
void head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  HWY_DYNAMIC_DISPATCH(HeadNorm)(x, w, head_dim, eps, y);
}
void head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y, View d_x) {
  HWY_DYNAMIC_DISPATCH(HeadNormBackward)(x, w, head_dim, eps, d_y, d_x);
}

}  // namespace fedpdpo::cpu
#endif
