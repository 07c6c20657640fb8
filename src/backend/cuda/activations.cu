// silu(x) = x s(x); gelu_tanh(x) = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = s(2u);
// gelu_erf(x) = x (1 + erf(x / sqrt 2)) / 2; s is the logistic function. A thread reads what it needs of an element
// before it writes, so that gradients may be written over their inputs.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace fedpdpo::cuda {
namespace {

struct ValueAndSlope {
  float value, slope;
};

// s(x) and its complement 1 - s(x), each without cancellation; the bound keeps exp finite.
struct Logistic {
  float s, rest;
  explicit __device__ Logistic(float x) {
    const float e = expf(fminf(-x, 88.0f));
    s = 1.0f / (1.0f + e);
    rest = e * s;
  }
};

struct Silu {
  static __device__ float value(float x) { return x * Logistic(x).s; }
  static __device__ ValueAndSlope both(float x) {
    const Logistic gate(x);
    const float value = x * gate.s;
    return {value, fmaf(value, gate.rest, gate.s)};
  }
};

struct GeluTanh {
  static constexpr float kTwoRoot = 1.5957691216057308f;  // 2 sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static __device__ float argument(float x) { return x * kTwoRoot * fmaf(x * x, kCubic, 1.0f); }
  static __device__ float value(float x) { return x * Logistic(argument(x)).s; }
  static __device__ ValueAndSlope both(float x) {
    // Beyond +-10 the gate is 0 or 1 and its slope 0 in fp32: clamped, the cubic cannot overflow.
    const float near = fmaxf(fminf(x, 10.0f), -10.0f);
    const Logistic gate(argument(near));
    const float inner = kTwoRoot * fmaf(near * near, 3 * kCubic, 1.0f);
    return {x * gate.s, fmaf(near * gate.s * gate.rest, inner, gate.s)};
  }
};

struct GeluErf {
  static constexpr float kInverseRoot2 = 0.70710678118654752f, kDensity = 0.39894228040143268f;  // 1 / sqrt(2 pi)
  static __device__ float gate(float x) { return fmaf(0.5f, erff(x * kInverseRoot2), 0.5f); }
  static __device__ float value(float x) { return x * gate(x); }
  static __device__ ValueAndSlope both(float x) {
    const float phi = gate(x);
    const float density = kDensity * expf(fmaxf(x * x * -0.5f, -100.0f));
    return {x * phi, fmaf(x, density, phi)};
  }
};

/// use(an activation's functions).
template <class Use>
void with(Activation kind, Use use) {
  switch (kind) {
    case Activation::silu:
      return use(Silu());
    case Activation::gelu_tanh:
      return use(GeluTanh());
    case Activation::gelu_erf:
      return use(GeluErf());
  }
}

template <class Act>
void apply(cudaStream_t stream, ConstView x, View y) {
  over_elements(stream, "activation", x.rows, x.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(y, t)[c] = Act::value(row_of(x, t)[c]); });
}

template <class Act>
void apply_backward(cudaStream_t stream, ConstView x, ConstView d_y, View d_x) {
  over_elements(stream, "activation_backward", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    row_of(d_x, t)[c] = row_of(d_y, t)[c] * Act::both(row_of(x, t)[c]).slope;
  });
}

template <class Act>
void apply_gated(cudaStream_t stream, ConstView x, View y) {
  const std::int64_t n = y.cols;
  over_elements(stream, "gated_activation", y.rows, n, [=] __device__(std::int64_t t, std::int64_t c) {
    row_of(y, t)[c] = Act::value(row_of(x, t)[c]) * row_of(x, t)[n + c];
  });
}

template <class Act>
void apply_gated_backward(cudaStream_t stream, ConstView x, ConstView d_y, View d_x) {
  const std::int64_t n = d_y.cols;
  over_elements(stream, "gated_activation_backward", d_y.rows, n, [=] __device__(std::int64_t t, std::int64_t c) {
    const ValueAndSlope gate = Act::both(row_of(x, t)[c]);
    const float up = row_of(x, t)[n + c], gradient = row_of(d_y, t)[c];
    row_of(d_x, t)[c] = gradient * up * gate.slope;
    row_of(d_x, t)[n + c] = gradient * gate.value;
  });
}

}  // namespace

void activation(cudaStream_t stream, Activation kind, ConstView x, View y) {
  with(kind, [&]<class Act>(Act) { apply<Act>(stream, x, y); });
}

void activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x) {
  with(kind, [&]<class Act>(Act) { apply_backward<Act>(stream, x, d_y, d_x); });
}

void gated_activation(cudaStream_t stream, Activation kind, ConstView x, View y) {
  with(kind, [&]<class Act>(Act) { apply_gated<Act>(stream, x, y); });
}

void gated_activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x) {
  with(kind, [&]<class Act>(Act) { apply_gated_backward<Act>(stream, x, d_y, d_x); });
}

}  // namespace fedpdpo::cuda
