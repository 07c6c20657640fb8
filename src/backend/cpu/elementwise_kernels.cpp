// Kernels that move or combine rows element by element: fill, bf16 conversion, axpy, scaled rows, bias, column sums,
// the gate z = (1 - g) h + g a, and rotary position embedding.
#include <bit>
#include <cstring>

#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

void Fill(View y, float value) {
  const Vec v = splat(value);
  for (std::int64_t t = 0; t < y.rows; ++t) {
    float* row = y.f32() + t * y.stride;
    for_columns(y.cols, [&](auto io, std::int64_t c) HWY_ATTR { io.store(v, row + c); });
  }
}

void WidenBf16(const std::uint16_t* x, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = std::bit_cast<float>(static_cast<std::uint32_t>(x[i]) << 16);
}

void RoundToBf16(const float* x, std::int64_t count, std::uint16_t* y) {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(x[i]);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
    y[i] = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}

void Axpy(float alpha, ConstView x, View y, Write mode) {
  const Vec scale = splat(alpha);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    float* y_row = y.f32() + t * y.stride;
    if (mode == Write::accumulate) {
      for_columns(x.cols, [&](auto io, std::int64_t c) HWY_ATTR {
        io.store(hn::MulAdd(scale, io.load(x_row + c), io.load(y_row + c)), y_row + c);
      });
    } else {
      for_columns(x.cols,
                  [&](auto io, std::int64_t c) HWY_ATTR { io.store(hn::Mul(scale, io.load(x_row + c)), y_row + c); });
    }
  }
}

void ScaleRows(const float* weights, View x) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const Vec weight = splat(weights[t]);
    float* row = x.f32() + t * x.stride;
    for_columns(x.cols,
                [&](auto io, std::int64_t c) HWY_ATTR { io.store(hn::Mul(weight, io.load(row + c)), row + c); });
  }
}

void AddBias(ConstView b, View y) {
  const float* bias = b.f32();
  for (std::int64_t t = 0; t < y.rows; ++t) {
    float* row = y.f32() + t * y.stride;
    for_columns(y.cols, [&](auto io, std::int64_t c)
                            HWY_ATTR { io.store(hn::Add(io.load(row + c), io.load(bias + c)), row + c); });
  }
}

void ColumnSum(ConstView x, View d_b, Write mode) {
  float* out = d_b.f32();
  for_columns(x.cols, [&](auto io, std::int64_t c) HWY_ATTR {
    // Two partial sums, even and odd rows, in a fixed order.
    Vec s0 = mode == Write::accumulate ? io.load(out + c) : hn::Zero(Floats());
    Vec s1 = hn::Zero(Floats());
    const float* p = x.f32() + c;
    std::int64_t t = 0;
    for (; t + 2 <= x.rows; t += 2, p += 2 * x.stride) {
      s0 = hn::Add(s0, io.load(p));
      s1 = hn::Add(s1, io.load(p + x.stride));
    }
    if (t < x.rows) s0 = hn::Add(s0, io.load(p));
    io.store(hn::Add(s0, s1), out + c);
  });
}

void Gate(ConstView h, ConstView a, ConstView g, View z) {
  const float* gate = g.f32();
  for (std::int64_t t = 0; t < h.rows; ++t) {
    const float* h_row = h.f32() + t * h.stride;
    const float* a_row = a.f32() + t * a.stride;
    float* z_row = z.f32() + t * z.stride;
    for_columns(h.cols, [&](auto io, std::int64_t c) HWY_ATTR {
      const Vec base = io.load(h_row + c);
      io.store(hn::MulAdd(io.load(gate + c), hn::Sub(io.load(a_row + c), base), base), z_row + c);
    });
  }
}

void GateBackward(ConstView h, ConstView a, ConstView g, ConstView d_z, View d_h, Write d_h_mode, View d_a, View d_g,
                  Write d_g_mode) {
  float* d_gate = d_g.f32();
  for_columns(h.cols, [&](auto io, std::int64_t c) HWY_ATTR {
    const Vec gate = io.load(g.f32() + c);
    Vec sum = d_g_mode == Write::accumulate ? io.load(d_gate + c) : hn::Zero(Floats());
    for (std::int64_t t = 0; t < h.rows; ++t) {
      const Vec gradient = io.load(d_z.f32() + t * d_z.stride + c);
      const Vec difference = hn::Sub(io.load(a.f32() + t * a.stride + c), io.load(h.f32() + t * h.stride + c));
      sum = hn::MulAdd(difference, gradient, sum);
      const Vec to_a = hn::Mul(gate, gradient), to_h = hn::Sub(gradient, to_a);
      float* d_h_row = d_h.f32() + t * d_h.stride + c;
      io.store(d_h_mode == Write::accumulate ? hn::Add(io.load(d_h_row), to_h) : to_h, d_h_row);
      io.store(to_a, d_a.f32() + t * d_a.stride + c);
    }
    io.store(sum, d_gate + c);
  });
}

void Rotate(const std::int32_t* positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
            View x) {
  const std::int64_t half = cos.cols;
  const Vec sign = splat(direction == Rotation::forward ? 1.0f : -1.0f);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* cos_row = cos.f32() + positions[t] * cos.stride;
    const float* sin_row = sin.f32() + positions[t] * sin.stride;
    float* row = x.f32() + t * x.stride;
    for_columns(half, [&](auto io, std::int64_t c) HWY_ATTR {
      const Vec cosine = io.load(cos_row + c), sine = hn::Mul(sign, io.load(sin_row + c));
      for (float* p = row + c; p < row + x.cols; p += head_dim) {
        const Vec x1 = io.load(p), x2 = io.load(p + half);
        io.store(hn::NegMulAdd(x2, sine, hn::Mul(x1, cosine)), p);
        io.store(hn::MulAdd(x1, sine, hn::Mul(x2, cosine)), p + half);
      }
    });
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(Fill);
HWY_EXPORT(WidenBf16);
HWY_EXPORT(RoundToBf16);
HWY_EXPORT(Axpy);
HWY_EXPORT(ScaleRows);
HWY_EXPORT(AddBias);
HWY_EXPORT(ColumnSum);
HWY_EXPORT(Gate);
HWY_EXPORT(GateBackward);
HWY_EXPORT(Rotate);

void fill(View y, float value) { HWY_DYNAMIC_DISPATCH(Fill)(y, value); }
void widen_bf16(const std::uint16_t* x, std::int64_t count, float* y) { HWY_DYNAMIC_DISPATCH(WidenBf16)(x, count, y); }
void round_to_bf16(const float* x, std::int64_t count, std::uint16_t* y) {
  HWY_DYNAMIC_DISPATCH(RoundToBf16)(x, count, y);
}
void axpy(float alpha, ConstView x, View y, Write mode) { HWY_DYNAMIC_DISPATCH(Axpy)(alpha, x, y, mode); }
void scale_rows(const float* weights, View x) { HWY_DYNAMIC_DISPATCH(ScaleRows)(weights, x); }
void add_bias(ConstView b, View y) { HWY_DYNAMIC_DISPATCH(AddBias)(b, y); }
void column_sum(ConstView x, View d_b, Write mode) { HWY_DYNAMIC_DISPATCH(ColumnSum)(x, d_b, mode); }
void gate(ConstView h, ConstView a, ConstView g, View z) { HWY_DYNAMIC_DISPATCH(Gate)(h, a, g, z); }
void gate_backward(ConstView h, ConstView a, ConstView g, ConstView d_z, View d_h, Write d_h_mode, View d_a, View d_g,
                   Write d_g_mode) {
  HWY_DYNAMIC_DISPATCH(GateBackward)(h, a, g, d_z, d_h, d_h_mode, d_a, d_g, d_g_mode);
}
void rotate(const std::int32_t* positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
            View x) {
  HWY_DYNAMIC_DISPATCH(Rotate)(positions, cos, sin, head_dim, direction, x);
}

}  // namespace fedpdpo::cpu
#endif
