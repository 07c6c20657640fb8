// Sums of products in double: blocks of 4096 elements, then the blocks' sums by one block, all in an order that the
// shape alone decides. And the search for NaN of the debug mode.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr std::int64_t kBlock = 4096;
constexpr unsigned kSumThreads = 256;

/// How the elements are cut: whole matrices where both lie without gaps, row by row otherwise.
struct Cut {
  std::int64_t rows, length, per_row;
  std::int64_t blocks() const { return rows * per_row; }
};

Cut cut_of(ConstView x, ConstView y) {
  const bool flat = x.contiguous() && y.contiguous();
  const std::int64_t length = flat ? x.size() : x.cols;
  return {flat ? 1 : x.rows, length, (length + kBlock - 1) / kBlock};
}

__global__ void partial_dot_kernel(ConstView x, ConstView y, Cut cut, double* sums) {
  const std::int64_t row = blockIdx.x / cut.per_row, first = blockIdx.x % cut.per_row * kBlock;
  const float* a = row_of(x, row);
  const float* b = row_of(y, row);
  double sum = 0;
  for (std::int64_t i = first + threadIdx.x; i < first + kBlock && i < cut.length; i += blockDim.x)
    sum = fma(static_cast<double>(a[i]), static_cast<double>(b[i]), sum);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void total_kernel(const double* sums, std::int64_t count, double* total) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

std::int64_t dot_scratch(ConstView x, ConstView y) { return 1 + cut_of(x, y).blocks(); }

void dot(cudaStream_t stream, ConstView x, ConstView y, double* scratch) {
  const Cut cut = cut_of(x, y);
  launch(stream, "dot", dim3(static_cast<unsigned>(cut.blocks())), dim3(kSumThreads), partial_dot_kernel, x, y, cut,
         scratch + 1);
  launch(stream, "dot", dim3(1), dim3(kSumThreads), total_kernel, scratch + 1, cut.blocks(), scratch);
}

void find_nan(cudaStream_t stream, ConstView x, unsigned long long* first) {
  over_elements(stream, "look for NaN", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    const float value = widened(x, t, c);
    if (value != value) atomicMin(first, static_cast<unsigned long long>(t * x.cols + c));
  });
}

}  // namespace fedpdpo::cuda
