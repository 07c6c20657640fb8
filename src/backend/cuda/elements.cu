// One thread an element: fill, copies and conversions, axpy, scaled rows, bias, rotary embedding, dropout.
#include <cmath>

#include "cuda/elements.hpp"
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace fedpdpo::cuda {
namespace {

template <class From, class To>
struct Copy {
  From x;
  To y;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    y.store(t, c, x.template load<N>(t, c));
  }
};

template <class Term>
struct Add {
  Elements<const float> a;
  Term b;
  Elements<float> y;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    Pack<N> sum = a.load<N>(t, c);
    const Pack<N> term = b.template load<N>(t, c);
    for (int i = 0; i < N; ++i) sum.v[i] += term.v[i];
    y.store(t, c, sum);
  }
};

template <class X>
struct AddBias {
  const float* bias;
  X y;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    Pack<N> sum = y.template load<N>(t, c);
    for (int i = 0; i < N; ++i) sum.v[i] += bias[c + i];
    y.store(t, c, sum);
  }
};

/// Over pairs of columns, `half` apart, of whole heads.
template <class X>
struct Rotate {
  const std::int32_t* positions;
  Elements<const float> cos, sin;
  float sign;
  std::int32_t half, head_dim;
  X x;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t pair) const {
    const auto i = static_cast<std::int32_t>(pair);
    const std::int32_t head = i / half, j = i % half;
    const std::int64_t first = static_cast<std::int64_t>(head) * head_dim + j;
    const Pack<N> c = cos.load<N>(positions[t], j), s = sin.load<N>(positions[t], j);
    const Pack<N> a = x.template load<N>(t, first), b = x.template load<N>(t, first + half);
    Pack<N> rotated_a, rotated_b;
    for (int k = 0; k < N; ++k) {
      const float up = sign * s.v[k];
      rotated_a.v[k] = fmaf(-b.v[k], up, a.v[k] * c.v[k]);
      rotated_b.v[k] = fmaf(a.v[k], up, b.v[k] * c.v[k]);
    }
    x.store(t, first, rotated_a);
    x.store(t, first + half, rotated_b);
  }
};

/// Four columns, or those that are left of a row, a thread: one Philox block. Kept where its word is at least p 2^32,
/// as on the CPU.
template <class From, class To>
struct Dropout {
  From x;
  To y;
  std::int64_t cols;
  std::uint32_t threshold, first_row, step, owner;
  float scale;
  PhiloxKey key;
  Write mode;
  template <int N>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    if (N == 1 && c % 4 != 0) return;
    const PhiloxCounter words =
        philox4x32({static_cast<std::uint32_t>(c / 4), first_row + static_cast<std::uint32_t>(t), step, owner}, key);
    for (int first = 0; first < 4 && c + first < cols; first += N) {
      Pack<N> kept = x.template load<N>(t, c + first);
      for (int i = 0; i < N; ++i) kept.v[i] = words[first + i] < threshold ? 0.0f : scale * kept.v[i];
      y.put(t, c + first, kept, mode);
    }
  }
};

}  // namespace

void fill(cudaStream_t stream, View y, float value) {
  over_elements(stream, "fill", y.rows, y.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(y, t)[c] = value; });
}

void copy(cudaStream_t stream, ConstView x, View y) {
  if (x.dtype == DType::i32) {  // as bits
    over_elements(stream, "copy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
      static_cast<std::uint32_t*>(y.data)[t * y.stride + c] =
          static_cast<const std::uint32_t*>(x.data)[t * x.stride + c];
    });
    return;
  }
  typed(x, [&](auto from) {
    typed(y, [&](auto to) {
      over_packs(stream, "copy", x.rows, x.cols, all_in_packs(x, y), Copy<decltype(from), decltype(to)>{from, to});
    });
  });
}

void round_to_bf16(cudaStream_t stream, ConstView x, std::uint16_t* y, std::int64_t y_stride) {
  copy(stream, x, {y, x.rows, x.cols, y_stride, DType::bf16});
}

void add(cudaStream_t stream, ConstView a, ConstView b, View y) {
  typed(b, [&](auto term) {
    over_packs(stream, "add", a.rows, a.cols, all_in_packs(a, b, y),
               Add<decltype(term)>{{a.f32(), a.stride}, term, {y.f32(), y.stride}});
  });
}

void axpy(cudaStream_t stream, float alpha, ConstView x, View y, Write mode) {
  over_elements(stream, "axpy", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    const float term = row_of(x, t)[c];
    float* out = row_of(y, t) + c;
    *out = mode == Write::accumulate ? fmaf(alpha, term, *out) : alpha * term;
  });
}

void scale_rows(cudaStream_t stream, ConstView weights, View x) {
  over_elements(stream, "scale_rows", x.rows, x.cols,
                [=] __device__(std::int64_t t, std::int64_t c) { row_of(x, t)[c] *= row_of(weights, 0)[t]; });
}

void add_bias(cudaStream_t stream, ConstView bias, View y) {
  typed(y, [&](auto to) {
    over_packs(stream, "linear: bias", y.rows, y.cols, in_packs(y), AddBias<decltype(to)>{bias.f32(), to});
  });
}

void rotate(cudaStream_t stream, ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim,
            Rotation direction, View x) {
  const auto half = static_cast<std::int32_t>(cos.cols);
  const float sign = direction == Rotation::forward ? 1.0f : -1.0f;
  const bool packed = all_in_packs(cos, sin, x.columns(0, head_dim));
  typed(x, [&](auto at) {
    over_packs(stream, "rotate", x.rows, x.cols / head_dim * half, packed,
               Rotate<decltype(at)>{
                   positions.i32(), {cos.f32(), cos.stride}, {sin.f32(), sin.stride}, sign, half, head_dim, at});
  });
}

void dropout(cudaStream_t stream, float p, const StreamId& id, std::int64_t first_row, ConstView x, View y,
             Write mode) {
  const auto threshold = static_cast<std::uint32_t>(std::ceil(static_cast<double>(p) * 4294967296.0));
  typed(x, [&](auto from) {
    typed(y, [&](auto to) {
      over_packs(stream, "dropout", x.rows, x.cols, all_in_packs(x, y),
                 Dropout<decltype(from), decltype(to)>{
                     from, to, x.cols, threshold, static_cast<std::uint32_t>(first_row), id.step,
                     id.client ^ (id.round << 16), 1.0f / (1.0f - p), philox_key(id.seed, id.purpose), mode});
    });
  });
}

}  // namespace fedpdpo::cuda
