// Norms, a block a row. With s = 1 / sqrt(mean(x^2) + eps), g = d_y w and n = x s:
//   RMS:    y = n w                    d_x = s (g - n mean(g n))
//   layer:  x first less its mean      d_x = s (g - mean(g) - n mean(g n))
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

enum class Norm : std::uint8_t { rms, layer };

template <class Term>
__device__ float sum_over(std::int64_t cols, Term term) {
  float sum = 0;
  for (std::int64_t c = threadIdx.x; c < cols; c += blockDim.x) sum += term(c);
  return block_sum(sum);
}

struct RowStatistics {
  float mean, s;
};

template <Norm kNorm>
__device__ RowStatistics statistics(const float* x, std::int64_t cols, float eps) {
  const auto n = static_cast<float>(cols);
  float mean = 0;
  if (kNorm == Norm::layer) mean = sum_over(cols, [&](std::int64_t c) { return x[c]; }) / n;
  const float squares = sum_over(cols, [&](std::int64_t c) { return (x[c] - mean) * (x[c] - mean); });
  return {mean, 1.0f / sqrtf(squares / n + eps)};
}

template <Norm kNorm>
__global__ void norm_kernel(ConstView x, ConstView w, ConstView b, float eps, View y) {
  const float* x_row = row_of(x, blockIdx.x);
  const auto [mean, s] = statistics<kNorm>(x_row, x.cols, eps);
  float* y_row = row_of(y, blockIdx.x);
  const float* weight = row_of(w, 0);
  for (std::int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
    const float n = (x_row[c] - mean) * s;
    y_row[c] = kNorm == Norm::rms ? n * weight[c] : fmaf(n, weight[c], row_of(b, 0)[c]);
  }
}

template <Norm kNorm>
__global__ void norm_backward_kernel(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  const float* x_row = row_of(x, blockIdx.x);
  const float* d_y_row = row_of(d_y, blockIdx.x);
  const float* weight = row_of(w, 0);
  const RowStatistics row = statistics<kNorm>(x_row, x.cols, eps);
  const float mean = row.mean, s = row.s;
  const auto n = static_cast<float>(x.cols);
  float mean_g = 0;
  if (kNorm == Norm::layer) mean_g = sum_over(x.cols, [&](std::int64_t c) { return d_y_row[c] * weight[c]; }) / n;
  const float slope =
      sum_over(x.cols, [&](std::int64_t c) { return d_y_row[c] * weight[c] * ((x_row[c] - mean) * s); }) / n;
  float* d_x_row = row_of(d_x, blockIdx.x);
  for (std::int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
    const float normed = (x_row[c] - mean) * s;
    put(d_x_row + c, s * fmaf(-normed, slope, d_y_row[c] * weight[c] - mean_g), mode);
  }
}

dim3 rows_of(ConstView x) { return dim3(static_cast<unsigned>(x.rows)); }
dim3 threads_for(std::int64_t cols) { return dim3(cols <= 256 ? 64 : (cols <= 1024 ? 128 : 256)); }

}  // namespace

void rms_norm(cudaStream_t stream, ConstView x, ConstView w, float eps, View y) {
  launch(stream, "rms_norm", rows_of(x), threads_for(x.cols), norm_kernel<Norm::rms>, x, w, ConstView{}, eps, y);
}

void layer_norm(cudaStream_t stream, ConstView x, ConstView w, ConstView b, float eps, View y) {
  launch(stream, "layer_norm", rows_of(x), threads_for(x.cols), norm_kernel<Norm::layer>, x, w, b, eps, y);
}

void rms_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  launch(stream, "rms_norm_backward", rows_of(x), threads_for(x.cols), norm_backward_kernel<Norm::rms>, x, w, eps, d_y,
         d_x, mode);
}

void layer_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x,
                         Write mode) {
  launch(stream, "layer_norm_backward", rows_of(x), threads_for(x.cols), norm_backward_kernel<Norm::layer>, x, w, eps,
         d_y, d_x, mode);
}

}  // namespace fedpdpo::cuda
