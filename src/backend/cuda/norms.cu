// Norms, a block a row. With s = 1 / sqrt(mean(x^2) + eps), g = d_y w and n = x s:
//   RMS:    y = n w                    d_x = s (g - n mean(g n))
//   layer:  x first less its mean      d_x = s (g - mean(g) - n mean(g n))
//   head:   RMS, a block a head of a row
// The stream x is f32; y and d_y, and all but w of a head's norm, may be bf16. A row is read again from the cache
// rather than kept in registers.
#include "cuda/elements.hpp"
#include "cuda/kernels.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

enum class Norm : std::uint8_t { rms, layer };

/// visit(first of N columns), each by one thread.
template <int N, class Visit>
__device__ void for_columns(std::int64_t cols, Visit visit) {
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * N; c < cols;
       c += static_cast<std::int64_t>(blockDim.x) * N)
    visit(c);
}

template <int N, class Term>
__device__ float sum_over(std::int64_t cols, Term term) {
  float sum = 0;
  for_columns<N>(cols, [&](std::int64_t c) { sum += term(c); });
  return block_sum(sum);
}

struct RowStatistics {
  float mean, s;
};

template <Norm kNorm, int N, class X>
__device__ RowStatistics statistics(X x, std::int64_t t, std::int64_t cols, float eps) {
  const auto n = static_cast<float>(cols);
  float mean = 0;
  if (kNorm == Norm::layer)
    mean = sum_over<N>(cols,
                       [&](std::int64_t c) {
                         const Pack<N> pack = x.template load<N>(t, c);
                         float sum = 0;
                         for (int i = 0; i < N; ++i) sum += pack.v[i];
                         return sum;
                       }) /
           n;
  const float squares = sum_over<N>(cols, [&](std::int64_t c) {
    const Pack<N> pack = x.template load<N>(t, c);
    float sum = 0;
    for (int i = 0; i < N; ++i) sum = fmaf(pack.v[i] - mean, pack.v[i] - mean, sum);
    return sum;
  });
  return {mean, 1.0f / sqrtf(squares / n + eps)};
}

template <Norm kNorm, int N, class X, class Y>
__device__ void write_normed(X x, const float* weight, const float* bias, float eps, Y y, std::int64_t t,
                             std::int64_t cols) {
  const auto [mean, s] = statistics<kNorm, N>(x, t, cols, eps);
  for_columns<N>(cols, [&](std::int64_t c) {
    Pack<N> pack = x.template load<N>(t, c);
    for (int i = 0; i < N; ++i) {
      const float n = (pack.v[i] - mean) * s;
      pack.v[i] = kNorm == Norm::rms ? n * weight[c + i] : fmaf(n, weight[c + i], bias[c + i]);
    }
    y.store(t, c, pack);
  });
}

template <Norm kNorm, int N, class Y>
__global__ void norm_kernel(Elements<const float> x, const float* weight, const float* bias, float eps, Y y,
                            std::int64_t cols) {
  write_normed<kNorm, N>(x, weight, bias, eps, y, blockIdx.x, cols);
}

// A thread reads again the very columns that it has written.
template <int N, class Y>
__global__ void residual_rms_norm_kernel(Elements<const float> x, Y delta, const float* weight, float eps,
                                         Elements<float> sum, Y y, std::int64_t cols) {
  const std::int64_t t = blockIdx.x;
  for_columns<N>(cols, [&](std::int64_t c) {
    Pack<N> total = x.load<N>(t, c);
    const Pack<N> term = delta.template load<N>(t, c);
    for (int i = 0; i < N; ++i) total.v[i] += term.v[i];
    sum.store(t, c, total);
  });
  write_normed<Norm::rms, N>(sum, weight, nullptr, eps, y, t, cols);
}

/// use(column, n, its gradient) for packs of row t, each by one thread.
template <Norm kNorm, int N, class X, class DY, class Use>
__device__ void for_gradients(X x, const float* weight, float eps, DY d_y, std::int64_t t, std::int64_t cols, Use use) {
  const RowStatistics row = statistics<kNorm, N>(x, t, cols, eps);
  const float mean = row.mean, s = row.s;
  const auto n = static_cast<float>(cols);
  float mean_g = 0;
  if (kNorm == Norm::layer)
    mean_g = sum_over<N>(cols,
                         [&](std::int64_t c) {
                           const Pack<N> g = d_y.template load<N>(t, c);
                           float sum = 0;
                           for (int i = 0; i < N; ++i) sum = fmaf(g.v[i], weight[c + i], sum);
                           return sum;
                         }) /
             n;
  const float slope = sum_over<N>(cols,
                                  [&](std::int64_t c) {
                                    const Pack<N> g = d_y.template load<N>(t, c), at = x.template load<N>(t, c);
                                    float sum = 0;
                                    for (int i = 0; i < N; ++i)
                                      sum = fmaf(g.v[i] * weight[c + i], (at.v[i] - mean) * s, sum);
                                    return sum;
                                  }) /
                      n;
  for_columns<N>(cols, [&](std::int64_t c) {
    Pack<N> normed = x.template load<N>(t, c), g = d_y.template load<N>(t, c);
    for (int i = 0; i < N; ++i) {
      normed.v[i] = (normed.v[i] - mean) * s;
      g.v[i] = s * fmaf(-normed.v[i], slope, g.v[i] * weight[c + i] - mean_g);
    }
    use(c, normed, g);
  });
}

template <Norm kNorm, int N, class DY>
__global__ void norm_backward_kernel(Elements<const float> x, const float* weight, float eps, DY d_y,
                                     Elements<float> d_x, Write mode, std::int64_t cols) {
  const std::int64_t t = blockIdx.x;
  for_gradients<kNorm, N>(x, weight, eps, d_y, t, cols,
                          [&](std::int64_t c, const Pack<N>&, const Pack<N>& g) { d_x.put(t, c, g, mode); });
}

template <int N, class DY, class Y>
__global__ void residual_rms_norm_backward_kernel(Elements<const float> sum, const float* weight, float eps, DY d_y,
                                                  Elements<float> d_sum, Y d_delta, Y y, std::int64_t cols) {
  const std::int64_t t = blockIdx.x;
  for_gradients<Norm::rms, N>(sum, weight, eps, d_y, t, cols, [&](std::int64_t c, Pack<N> normed, const Pack<N>& g) {
    Pack<N> total = d_sum.load<N>(t, c);
    for (int i = 0; i < N; ++i) {
      total.v[i] += g.v[i];
      normed.v[i] *= weight[c + i];
    }
    d_sum.store(t, c, total);
    d_delta.store(t, c, total);
    y.store(t, c, normed);
  });
}

/// The same rows from column c on.
template <class X>
__device__ X from(X x, std::int64_t c) {
  return {x.data + c, x.stride};
}

template <int N, class X, class Y>
__global__ void head_norm_kernel(X x, const float* weight, float eps, Y y, std::int32_t num_heads,
                                 std::int64_t head_dim) {
  const std::int64_t first = blockIdx.x % num_heads * head_dim;
  write_normed<Norm::rms, N>(from(x, first), weight + first, nullptr, eps, from(y, first), blockIdx.x / num_heads,
                             head_dim);
}

template <int N, class X, class DX>
__global__ void head_norm_backward_kernel(X x, const float* weight, float eps, X d_y, DX d_x, std::int32_t num_heads,
                                          std::int64_t head_dim) {
  const std::int64_t first = blockIdx.x % num_heads * head_dim;
  const std::int64_t t = blockIdx.x / num_heads;
  for_gradients<Norm::rms, N>(from(x, first), weight + first, eps, from(d_y, first), t, head_dim,
                              [&](std::int64_t c, const Pack<N>&, const Pack<N>& g) { d_x.store(t, first + c, g); });
}

/// Whether a row is taken by packs, and so in which order it is summed: by strides alone, also of a single row.
template <class... Views>
bool rows_in_packs(Views... views) {
  return all_in_packs(views...) && ((views.stride % kPack == 0) && ...);
}

dim3 rows_of(ConstView x) { return dim3(static_cast<unsigned>(x.rows)); }
/// Whole warps, a pack or a few a thread.
dim3 threads_for(std::int64_t cols, bool packed) {
  const std::int64_t packs = packed ? (cols + kPack - 1) / kPack : cols;
  return dim3(static_cast<unsigned>(std::clamp<std::int64_t>((packs + kWarp - 1) / kWarp * kWarp, kWarp, 256)));
}

Elements<const float> stream_of(ConstView x) { return {x.f32(), x.stride}; }
Elements<float> stream_of(View x) { return {x.f32(), x.stride}; }

template <Norm kNorm>
void norm(cudaStream_t stream, const char* operation, ConstView x, ConstView w, ConstView b, float eps, View y) {
  const bool packed = rows_in_packs(x, y);
  typed(y, [&]<class Y>(Y out) {
    launch(stream, operation, rows_of(x), threads_for(x.cols, packed),
           packed ? norm_kernel<kNorm, kPack, Y> : norm_kernel<kNorm, 1, Y>, stream_of(x), w.f32(), b.f32(), eps, out,
           x.cols);
  });
}

template <Norm kNorm>
void norm_backward(cudaStream_t stream, const char* operation, ConstView x, ConstView w, float eps, ConstView d_y,
                   View d_x, Write mode) {
  const bool packed = rows_in_packs(x, d_y, d_x);
  typed(d_y, [&]<class DY>(DY gradient) {
    launch(stream, operation, rows_of(x), threads_for(x.cols, packed),
           packed ? norm_backward_kernel<kNorm, kPack, DY> : norm_backward_kernel<kNorm, 1, DY>, stream_of(x), w.f32(),
           eps, gradient, stream_of(d_x), mode, x.cols);
  });
}

dim3 heads_of(ConstView x, std::int32_t head_dim) { return dim3(static_cast<unsigned>(x.size() / head_dim)); }

}  // namespace

void rms_norm(cudaStream_t stream, ConstView x, ConstView w, float eps, View y) {
  norm<Norm::rms>(stream, "rms_norm", x, w, {}, eps, y);
}

void layer_norm(cudaStream_t stream, ConstView x, ConstView w, ConstView b, float eps, View y) {
  norm<Norm::layer>(stream, "layer_norm", x, w, b, eps, y);
}

void residual_rms_norm(cudaStream_t stream, ConstView x, ConstView delta, ConstView w, float eps, View sum, View y) {
  const bool packed = rows_in_packs(x, delta, sum, y);
  typed(y, [&]<class Y>(Elements<Y> out) {
    // The kernel writes through one of the two alone.
    const Elements<Y> term{const_cast<Y*>(static_cast<const Y*>(delta.data)), delta.stride};
    launch(stream, "residual_rms_norm", rows_of(x), threads_for(x.cols, packed),
           packed ? residual_rms_norm_kernel<kPack, Elements<Y>> : residual_rms_norm_kernel<1, Elements<Y>>,
           stream_of(x), term, w.f32(), eps, stream_of(sum), out, x.cols);
  });
}

void residual_rms_norm_backward(cudaStream_t stream, ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum,
                                View d_delta, View y) {
  const bool packed = rows_in_packs(sum, d_y, d_sum, d_delta, y);
  typed(y, [&]<class Y>(Elements<Y> out) {
    const Elements<const Y> gradient{static_cast<const Y*>(d_y.data), d_y.stride};
    const Elements<Y> copy{static_cast<Y*>(d_delta.data), d_delta.stride};
    launch(stream, "residual_rms_norm_backward", rows_of(sum), threads_for(sum.cols, packed),
           packed ? residual_rms_norm_backward_kernel<kPack, Elements<const Y>, Elements<Y>>
                  : residual_rms_norm_backward_kernel<1, Elements<const Y>, Elements<Y>>,
           stream_of(sum), w.f32(), eps, gradient, stream_of(d_sum), copy, out, sum.cols);
  });
}

void rms_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  norm_backward<Norm::rms>(stream, "rms_norm_backward", x, w, eps, d_y, d_x, mode);
}

void layer_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x,
                         Write mode) {
  norm_backward<Norm::layer>(stream, "layer_norm_backward", x, w, eps, d_y, d_x, mode);
}

void head_norm(cudaStream_t stream, ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  const bool packed = head_dim % kPack == 0 && rows_in_packs(x, y);
  const auto num_heads = static_cast<std::int32_t>(x.cols / head_dim);
  typed(y, [&]<class Y>(Elements<Y> out) {
    const Elements<const Y> in{static_cast<const Y*>(x.data), x.stride};
    launch(stream, "head_norm", heads_of(x, head_dim), threads_for(head_dim, packed),
           packed ? head_norm_kernel<kPack, Elements<const Y>, Elements<Y>>
                  : head_norm_kernel<1, Elements<const Y>, Elements<Y>>,
           in, w.f32(), eps, out, num_heads, head_dim);
  });
}

void head_norm_backward(cudaStream_t stream, ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                        View d_x) {
  const bool packed = head_dim % kPack == 0 && rows_in_packs(x, d_y, d_x);
  const auto num_heads = static_cast<std::int32_t>(x.cols / head_dim);
  typed(d_x, [&]<class Y>(Elements<Y> gradient) {
    const Elements<const Y> in{static_cast<const Y*>(x.data), x.stride};
    const Elements<const Y> d_out{static_cast<const Y*>(d_y.data), d_y.stride};
    launch(stream, "head_norm_backward", heads_of(x, head_dim), threads_for(head_dim, packed),
           packed ? head_norm_backward_kernel<kPack, Elements<const Y>, Elements<Y>>
                  : head_norm_backward_kernel<1, Elements<const Y>, Elements<Y>>,
           in, w.f32(), eps, d_out, gradient, num_heads, head_dim);
  });
}

}  // namespace fedpdpo::cuda
