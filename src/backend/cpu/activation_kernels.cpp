// silu(x) = x s(x); gelu_tanh(x) = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = s(2u);
// gelu_erf(x) = x (1 + erf(x / sqrt 2)) / 2; s is the logistic function. erf: own Chebyshev fits (see `erf`).
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/activation_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

template <std::size_t kTerms>
HWY_INLINE Vec polynomial(Vec x, const float (&coefficients)[kTerms]) {
  Vec sum = splat(coefficients[0]);
  for (std::size_t i = 1; i < kTerms; ++i) sum = hn::MulAdd(sum, x, splat(coefficients[i]));
  return sum;
}

// erf(x) = x P(x^2) up to 1 (error 1e-9), 1 - exp(-|x| Q(|x|)) beyond (4e-8), 1 in fp32 from 4 on.
HWY_INLINE Vec erf(Vec x) {
  static constexpr float kNear[] = {7.875875062685488e-05f, -0.000801686428716587f, 0.005189087423433974f,
                                    -0.026854212010626412f, 0.11283594715160218f,   -0.37612626666720334f,
                                    1.1283791658483509f};
  static constexpr float kFar[] = {-1.0941360725800547e-06f, 3.5268030664490744e-05f, -0.0005055421673463713f,
                                   0.004331470717595473f,    -0.02520582722223921f,   0.10794755438186542f,
                                   0.6340800656201185f,      1.12892355820565f};
  const Floats d;
  const Vec size = hn::Min(hn::Abs(x), splat(4.0f));
  const Vec near = hn::Mul(x, polynomial(hn::Mul(x, x), kNear));
  const Vec far = hn::Sub(splat(1.0f), hn::Exp(d, hn::Neg(hn::Mul(size, polynomial(size, kFar)))));
  return hn::IfThenElse(hn::Le(hn::Abs(x), splat(1.0f)), near, hn::CopySign(far, x));
}

HWY_INLINE Vec logistic(Vec x) {
  const Vec e = hn::Exp(Floats(), hn::Min(hn::Neg(x), splat(88.0f)));
  return hn::Div(splat(1.0f), hn::Add(splat(1.0f), e));
}

// s(x) and its complement 1 - s(x), each without cancellation.
HWY_INLINE void logistic_pair(Vec x, Vec& s, Vec& rest) {
  const Vec e = hn::Exp(Floats(), hn::Min(hn::Neg(x), splat(88.0f)));
  s = hn::Div(splat(1.0f), hn::Add(splat(1.0f), e));
  rest = hn::Mul(e, s);
}

struct Silu {
  static HWY_INLINE Vec value(Vec x) { return hn::Mul(x, logistic(x)); }
  static HWY_INLINE void value_and_slope(Vec x, Vec& value, Vec& slope) {
    Vec s, rest;
    logistic_pair(x, s, rest);
    value = hn::Mul(x, s);
    slope = hn::MulAdd(value, rest, s);
  }
};

struct GeluTanh {
  static constexpr float kTwoRoot = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static HWY_INLINE Vec argument(Vec x) {
    return hn::Mul(hn::Mul(x, splat(kTwoRoot)), hn::MulAdd(hn::Mul(x, x), splat(kCubic), splat(1.0f)));
  }
  static HWY_INLINE Vec value(Vec x) { return hn::Mul(x, logistic(argument(x))); }
  static HWY_INLINE void value_and_slope(Vec x, Vec& value, Vec& slope) {
    // Beyond +-10 the gate is 0 or 1 and its slope 0 in fp32: clamped, the cubic cannot overflow.
    const Vec near = hn::Max(hn::Min(x, splat(10.0f)), splat(-10.0f));
    Vec s, rest;
    logistic_pair(argument(near), s, rest);
    const Vec inner = hn::Mul(splat(kTwoRoot), hn::MulAdd(hn::Mul(near, near), splat(3 * kCubic), splat(1.0f)));
    value = hn::Mul(x, s);
    slope = hn::MulAdd(hn::Mul(hn::Mul(near, s), rest), inner, s);
  }
};

struct GeluErf {
  static constexpr float kInverseRoot2 = 0.70710678118654752f, kDensity = 0.39894228040143268f;  // 1 / sqrt(2 pi)
  static HWY_INLINE Vec gate(Vec x) {
    return hn::MulAdd(splat(0.5f), erf(hn::Mul(x, splat(kInverseRoot2))), splat(0.5f));
  }
  static HWY_INLINE Vec value(Vec x) { return hn::Mul(x, gate(x)); }
  static HWY_INLINE void value_and_slope(Vec x, Vec& value, Vec& slope) {
    const Vec phi = gate(x);
    const Vec exponent = hn::Max(hn::Mul(hn::Mul(x, x), splat(-0.5f)), splat(-100.0f));
    const Vec density = hn::Mul(splat(kDensity), hn::Exp(Floats(), exponent));
    value = hn::Mul(x, phi);
    slope = hn::MulAdd(x, density, phi);
  }
};

template <class Act>
HWY_INLINE void apply(ConstView x, View y) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    float* y_row = y.f32() + t * y.stride;
    for_columns(x.cols, [&](auto io, std::int64_t c) HWY_ATTR { io.store(Act::value(io.load(x_row + c)), y_row + c); });
  }
}

template <class Act>
HWY_INLINE void apply_backward(ConstView x, ConstView d_y, View d_x, View y) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    const float* d_y_row = d_y.f32() + t * d_y.stride;
    float* d_x_row = d_x.f32() + t * d_x.stride;
    float* y_row = y.rows > 0 ? y.f32() + t * y.stride : nullptr;
    for_columns(x.cols, [&](auto io, std::int64_t c) HWY_ATTR {
      Vec value, slope;
      Act::value_and_slope(io.load(x_row + c), value, slope);
      io.store(hn::Mul(io.load(d_y_row + c), slope), d_x_row + c);
      if (y_row != nullptr) io.store(value, y_row + c);
    });
  }
}

template <class Act>
HWY_INLINE void apply_gated(ConstView x, View y) {
  const std::int64_t n = y.cols;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* gate = x.f32() + t * x.stride;
    float* y_row = y.f32() + t * y.stride;
    for_columns(n, [&](auto io, std::int64_t c) HWY_ATTR {
      io.store(hn::Mul(Act::value(io.load(gate + c)), io.load(gate + n + c)), y_row + c);
    });
  }
}

template <class Act>
HWY_INLINE void apply_gated_backward(ConstView x, ConstView d_y, View d_x, View y) {
  const std::int64_t n = d_y.cols;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* gate = x.f32() + t * x.stride;
    const float* d_y_row = d_y.f32() + t * d_y.stride;
    float* d_gate = d_x.f32() + t * d_x.stride;
    float* y_row = y.rows > 0 ? y.f32() + t * y.stride : nullptr;
    for_columns(n, [&](auto io, std::int64_t c) HWY_ATTR {
      const Vec up = io.load(gate + n + c), gradient = io.load(d_y_row + c);
      Vec value, slope;
      Act::value_and_slope(io.load(gate + c), value, slope);
      io.store(hn::Mul(hn::Mul(gradient, up), slope), d_gate + c);
      io.store(hn::Mul(gradient, value), d_gate + n + c);
      if (y_row != nullptr) io.store(hn::Mul(value, up), y_row + c);
    });
  }
}

void GatedActivation(Activation kind, ConstView x, View y) {
  switch (kind) {
    case Activation::silu:
      return apply_gated<Silu>(x, y);
    case Activation::gelu_tanh:
      return apply_gated<GeluTanh>(x, y);
    case Activation::gelu_erf:
      return apply_gated<GeluErf>(x, y);
  }
}

void GatedActivationBackward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  switch (kind) {
    case Activation::silu:
      return apply_gated_backward<Silu>(x, d_y, d_x, y);
    case Activation::gelu_tanh:
      return apply_gated_backward<GeluTanh>(x, d_y, d_x, y);
    case Activation::gelu_erf:
      return apply_gated_backward<GeluErf>(x, d_y, d_x, y);
  }
}

void Activate(Activation kind, ConstView x, View y) {
  switch (kind) {
    case Activation::silu:
      return apply<Silu>(x, y);
    case Activation::gelu_tanh:
      return apply<GeluTanh>(x, y);
    case Activation::gelu_erf:
      return apply<GeluErf>(x, y);
  }
}

void ActivateBackward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  switch (kind) {
    case Activation::silu:
      return apply_backward<Silu>(x, d_y, d_x, y);
    case Activation::gelu_tanh:
      return apply_backward<GeluTanh>(x, d_y, d_x, y);
    case Activation::gelu_erf:
      return apply_backward<GeluErf>(x, d_y, d_x, y);
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(GatedActivation);
HWY_EXPORT(GatedActivationBackward);
HWY_EXPORT(Activate);
HWY_EXPORT(ActivateBackward);

void gated_activation(Activation kind, ConstView x, View y) { HWY_DYNAMIC_DISPATCH(GatedActivation)(kind, x, y); }
void gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  HWY_DYNAMIC_DISPATCH(GatedActivationBackward)(kind, x, d_y, d_x, y);
}
void activation(Activation kind, ConstView x, View y) { HWY_DYNAMIC_DISPATCH(Activate)(kind, x, y); }
void activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  HWY_DYNAMIC_DISPATCH(ActivateBackward)(kind, x, d_y, d_x, y);
}

}  // namespace fedpdpo::cpu
#endif
