// silu(x) = x s(x); gelu_tanh(x) = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = s(2u);
// gelu_erf(x) = x (1 + erf(x / sqrt 2)) / 2; s is the logistic function. A thread reads what it needs of an element
// before it writes, so that gradients may be written over their inputs.
#include "cuda/elements.hpp"
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

template <class Act, class X, class Y>
struct Plain {
  X x;
  Y y;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    Pack<N> pack = x.template load<N>(t, c);
    for (int i = 0; i < N; ++i) pack.v[i] = Act::value(pack.v[i]);
    y.store(t, c, pack);
  }
};

template <class Act, class X, class Y>
struct PlainBackward {
  X x, d_y;
  Y d_x, y;  // y without memory: not wanted
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    const Pack<N> argument = x.template load<N>(t, c);
    Pack<N> gradient = d_y.template load<N>(t, c);
    Pack<N> value;
    for (int i = 0; i < N; ++i) {
      const ValueAndSlope both = Act::both(argument.v[i]);
      gradient.v[i] *= both.slope;
      value.v[i] = both.value;
    }
    d_x.store(t, c, gradient);
    if (y.data != nullptr) y.store(t, c, value);
  }
};

template <class Act, class X, class Y>
struct Gated {
  X x;
  Y y;
  std::int64_t n;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    Pack<N> gate = x.template load<N>(t, c);
    const Pack<N> up = x.template load<N>(t, n + c);
    for (int i = 0; i < N; ++i) gate.v[i] = Act::value(gate.v[i]) * up.v[i];
    y.store(t, c, gate);
  }
};

template <class Act, class X, class Y>
struct GatedBackward {
  X x, d_y;
  Y d_x, y;  // y without memory: not wanted
  std::int64_t n;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    Pack<N> gate = x.template load<N>(t, c), up = x.template load<N>(t, n + c);
    const Pack<N> gradient = d_y.template load<N>(t, c);
    Pack<N> product;
    for (int i = 0; i < N; ++i) {
      const ValueAndSlope both = Act::both(gate.v[i]);
      product.v[i] = both.value * up.v[i];
      gate.v[i] = gradient.v[i] * up.v[i] * both.slope;
      up.v[i] = gradient.v[i] * both.value;
    }
    d_x.store(t, c, gate);
    d_x.store(t, n + c, up);
    if (y.data != nullptr) y.store(t, c, product);
  }
};

}  // namespace

void activation(cudaStream_t stream, Activation kind, ConstView x, View y) {
  with(kind, [&]<class Act>(Act) {
    typed(x, [&]<class X>(Elements<const X> from) {
      over_packs(stream, "activation", x.rows, x.cols, all_in_packs(x, y),
                 Plain<Act, Elements<const X>, Elements<X>>{from, {static_cast<X*>(y.data), y.stride}});
    });
  });
}

void activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  with(kind, [&]<class Act>(Act) {
    typed(x, [&]<class X>(Elements<const X> from) {
      over_packs(stream, "activation_backward", x.rows, x.cols,
                 all_in_packs(x, d_y, d_x) && (y.rows == 0 || in_packs(y)),
                 PlainBackward<Act, Elements<const X>, Elements<X>>{from,
                                                                    {static_cast<const X*>(d_y.data), d_y.stride},
                                                                    {static_cast<X*>(d_x.data), d_x.stride},
                                                                    {static_cast<X*>(y.data), y.stride}});
    });
  });
}

void gated_activation(cudaStream_t stream, Activation kind, ConstView x, View y) {
  with(kind, [&]<class Act>(Act) {
    typed(x, [&]<class X>(Elements<const X> from) {
      over_packs(stream, "gated_activation", y.rows, y.cols, all_in_packs(x.columns(0, y.cols), y),
                 Gated<Act, Elements<const X>, Elements<X>>{from, {static_cast<X*>(y.data), y.stride}, y.cols});
    });
  });
}

void gated_activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  with(kind, [&]<class Act>(Act) {
    typed(x, [&]<class X>(Elements<const X> from) {
      over_packs(stream, "gated_activation_backward", d_y.rows, d_y.cols,
                 all_in_packs(x.columns(0, d_y.cols), d_y, d_x.columns(0, d_y.cols)) && (y.rows == 0 || in_packs(y)),
                 GatedBackward<Act, Elements<const X>, Elements<X>>{from,
                                                                    {static_cast<const X*>(d_y.data), d_y.stride},
                                                                    {static_cast<X*>(d_x.data), d_x.stride},
                                                                    {static_cast<X*>(y.data), y.stride},
                                                                    d_y.cols});
    });
  });
}

}  // namespace fedpdpo::cuda
