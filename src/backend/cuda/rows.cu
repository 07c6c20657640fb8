// Rows by index: embedding, gather, and scatter that adds. A row that several rows are added to is summed by one block,
// in the order of the adding rows.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kScatterThreads = 256;

// Block i sums into rows[i], unless an earlier row does: y[rows[i]] += x[i], then the later rows of the same index.
__global__ void scatter_add_kernel(ConstView x, ConstView rows, View y) {
  __shared__ std::int32_t tile[kScatterThreads];
  const auto* index = static_cast<const std::int32_t*>(rows.data);
  const std::int64_t n = x.rows, first = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int32_t row = index[first];
  int taken = 0;
  for (std::int64_t i = thread; i < first; i += kScatterThreads) taken |= index[i] == row ? 1 : 0;
  if (__syncthreads_or(taken) != 0) return;

  for (std::int64_t c0 = 0; c0 < x.cols; c0 += kScatterThreads) {
    const std::int64_t c = c0 + thread;
    float sum = c < x.cols ? row_of(y, row)[c] : 0.0f;
    for (std::int64_t begin = first; begin < n; begin += kScatterThreads) {
      __syncthreads();
      tile[thread] = begin + thread < n ? index[begin + thread] : -1;
      __syncthreads();
      const std::int64_t count = n - begin < kScatterThreads ? n - begin : kScatterThreads;
      for (int i = 0; i < count; ++i)
        if (tile[i] == row && c < x.cols) sum += row_of(x, begin + i)[c];
    }
    if (c < x.cols) row_of(y, row)[c] = sum;
  }
}

}  // namespace

void embed(cudaStream_t stream, ConstView tokens, ConstView positions, ConstView table, ConstView position_table,
           View y) {
  over_elements(stream, "embed", y.rows, y.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    float value = widened(table, static_cast<const std::int32_t*>(tokens.data)[t], c);
    if (position_table.rows > 0)
      value += widened(position_table, static_cast<const std::int32_t*>(positions.data)[t], c);
    row_of(y, t)[c] = value;
  });
}

void gather_rows(cudaStream_t stream, ConstView x, ConstView rows, View y) {
  over_elements(stream, "gather_rows", y.rows, y.cols, [=] __device__(std::int64_t i, std::int64_t c) {
    row_of(y, i)[c] = row_of(x, static_cast<const std::int32_t*>(rows.data)[i])[c];
  });
}

void scatter_add_rows(cudaStream_t stream, ConstView x, ConstView rows, View y) {
  launch(stream, "scatter_add_rows", dim3(static_cast<unsigned>(x.rows)), dim3(kScatterThreads), scatter_add_kernel, x,
         rows, y);
}

}  // namespace fedpdpo::cuda
