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

/// By the whole block; every thread gets the sum of the elements [first, first + kBlock) below `length`.
__device__ double block_dot(const float* a, const float* b, std::int64_t first, std::int64_t length) {
  double sum = 0;
  for (std::int64_t i = first + threadIdx.x; i < first + kBlock && i < length; i += blockDim.x)
    sum = fma(static_cast<double>(a[i]), static_cast<double>(b[i]), sum);
  return block_sum(sum);
}

__device__ double block_total(const double* sums, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
  return block_sum(sum);
}

__global__ void partial_dot_kernel(ConstView x, ConstView y, Cut cut, double* sums) {
  const std::int64_t row = blockIdx.x / cut.per_row, first = blockIdx.x % cut.per_row * kBlock;
  const double sum = block_dot(row_of(x, row), row_of(y, row), first, cut.length);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void total_kernel(const double* sums, std::int64_t count, double* total) {
  const double sum = block_total(sums, count);
  if (threadIdx.x == 0) *total = sum;
}

/// Vectors of one launch and where their blocks' sums lie.
struct NormTable {
  static constexpr int kMost = 96;
  struct Entry {
    const float* data;
    std::int64_t length, first_sum;
  } entries[kMost];
};

std::int64_t blocks_of(ConstView x) { return (x.cols + kBlock - 1) / kBlock; }

__global__ void partial_norms_kernel(NormTable table, double* sums) {
  const auto entry = table.entries[blockIdx.y];
  const std::int64_t first = blockIdx.x * kBlock;
  if (first >= entry.length) return;
  const double sum = block_dot(entry.data, entry.data, first, entry.length);
  if (threadIdx.x == 0) sums[entry.first_sum + blockIdx.x] = sum;
}

__global__ void total_norms_kernel(NormTable table, const double* sums, double* totals) {
  const auto entry = table.entries[blockIdx.x];
  const double sum = block_total(sums + entry.first_sum, (entry.length + kBlock - 1) / kBlock);
  if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

}  // namespace

std::int64_t dot_scratch(ConstView x, ConstView y) { return 1 + cut_of(x, y).blocks(); }

void dot(cudaStream_t stream, ConstView x, ConstView y, double* scratch) {
  const Cut cut = cut_of(x, y);
  launch(stream, "dot", dim3(static_cast<unsigned>(cut.blocks())), dim3(kSumThreads), partial_dot_kernel, x, y, cut,
         scratch + 1);
  launch(stream, "dot", dim3(1), dim3(kSumThreads), total_kernel, scratch + 1, cut.blocks(), scratch);
}

std::int64_t squared_norms_scratch(std::span<const ConstView> xs) {
  auto count = static_cast<std::int64_t>(xs.size());
  for (const ConstView& x : xs) count += blocks_of(x);
  return count;
}

void squared_norms(cudaStream_t stream, std::span<const ConstView> xs, double* scratch) {
  std::int64_t next = static_cast<std::int64_t>(xs.size());
  for (std::size_t first = 0; first < xs.size(); first += NormTable::kMost) {
    const std::size_t count = std::min<std::size_t>(NormTable::kMost, xs.size() - first);
    NormTable table{};
    std::int64_t most = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const ConstView& x = xs[first + i];
      table.entries[i] = {x.f32(), x.cols, next};
      next += blocks_of(x);
      most = std::max(most, blocks_of(x));
    }
    const auto vectors = static_cast<unsigned>(count);
    if (most > 0)
      launch(stream, "squared_norms", dim3(static_cast<unsigned>(most), vectors), dim3(kSumThreads),
             partial_norms_kernel, table, scratch);
    launch(stream, "squared_norms", dim3(vectors), dim3(kSumThreads), total_norms_kernel, table, scratch,
           scratch + first);
  }
}

void find_nan(cudaStream_t stream, ConstView x, unsigned long long* first) {
  over_elements(stream, "look for NaN", x.rows, x.cols, [=] __device__(std::int64_t t, std::int64_t c) {
    const float value = widened(x, t, c);
    if (value != value) atomicMin(first, static_cast<unsigned long long>(t * x.cols + c));
  });
}

}  // namespace fedpdpo::cuda
