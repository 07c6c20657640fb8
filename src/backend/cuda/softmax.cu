// log p(target) and its gradient, a block a row of the vocabulary, read once: a thread's sum of exp(l - m), in double,
// is scaled when its maximum m rises. Log-sum-exp and target logit come from the same fp32 numbers.
#include <cfloat>

#include "cuda/elements.hpp"
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr unsigned kRowThreads = 512;

/// visit(first column, how many) of a thread's packs, and single columns where a row ends within a pack.
template <int N, class Visit>
__device__ void for_row(std::int64_t cols, Visit visit) {
  const std::int64_t whole = cols / N * N;
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * N; c < whole;
       c += static_cast<std::int64_t>(blockDim.x) * N)
    visit.template operator()<N>(c);
  if (whole + threadIdx.x < cols) visit.template operator()<1>(whole + threadIdx.x);
}

template <int N>
__global__ void log_softmax_kernel(Elements<const float> logits, const std::int32_t* targets, float* log_prob,
                                   float* lse, std::int64_t cols) {
  const std::int64_t i = blockIdx.x;
  float maximum = -FLT_MAX;
  double sum = 0;
  for_row<N>(cols, [&]<int M>(std::int64_t c) {
    const Pack<M> pack = logits.load<M>(i, c);
    float largest = pack.v[0];
    for (int k = 1; k < M; ++k) largest = fmaxf(largest, pack.v[k]);
    if (largest > maximum) {
      sum *= static_cast<double>(expf(maximum - largest));
      maximum = largest;
    }
    for (int k = 0; k < M; ++k) sum += static_cast<double>(expf(pack.v[k] - maximum));
  });
  const float of_row = block_max(maximum);
  // A thread without columns has the sum 0, whatever its maximum.
  sum = block_sum(sum > 0 ? sum * exp(static_cast<double>(maximum) - static_cast<double>(of_row)) : sum);
  if (threadIdx.x != 0) return;
  const double log_sum = log(sum), target = logits.data[i * logits.stride + targets[i]];
  lse[i] = static_cast<float>(static_cast<double>(of_row) + log_sum);
  log_prob[i] = static_cast<float>((target - static_cast<double>(of_row)) - log_sum);
}

/// A step of the block reads before it writes, and what later steps read lies behind what it writes: d_logits may lie
/// over the rows of logits, also in bf16 over their first halves.
template <int N, class Y>
__global__ void log_softmax_backward_kernel(Elements<const float> logits, const std::int32_t* targets, const float* lse,
                                            const float* coefficient, Y d_logits, std::int64_t cols) {
  const std::int64_t i = blockIdx.x, target = targets[i];
  const float weight = coefficient[i], shift = lse[i];
  const auto gradient = [&]<int M>(Pack<M> pack, std::int64_t c) {
    for (int k = 0; k < M; ++k) {
      pack.v[k] = weight == 0 ? 0.0f : -weight * expf(pack.v[k] - shift);
      if (c + k == target) pack.v[k] += weight;
    }
    return pack;
  };
  const std::int64_t whole = cols / N * N, step = static_cast<std::int64_t>(blockDim.x) * N;
  for (std::int64_t first = 0; first < whole; first += step) {
    const std::int64_t c = first + static_cast<std::int64_t>(threadIdx.x) * N;
    Pack<N> pack{};
    if (c < whole) pack = gradient(logits.load<N>(i, c), c);
    __syncthreads();
    if (c < whole) d_logits.store(i, c, pack);
  }
  const std::int64_t last = whole + threadIdx.x;
  Pack<1> rest{};
  if (last < cols) rest = gradient(logits.load<1>(i, last), last);
  __syncthreads();
  if (last < cols) d_logits.store(i, last, rest);
}

/// Whether the rows of x, of any number of columns, begin where packs do.
bool rows_begin_at_packs(ConstView x) {
  const auto bytes = static_cast<std::uintptr_t>(kPack * dtype_size(x.dtype));
  return x.stride % kPack == 0 && reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0;
}

dim3 rows_of(ConstView x) { return dim3(static_cast<unsigned>(x.rows)); }

}  // namespace

void log_softmax(cudaStream_t stream, ConstView logits, ConstView targets, View log_prob, View lse) {
  launch(stream, "log_softmax", rows_of(logits), dim3(kRowThreads),
         rows_begin_at_packs(logits) ? log_softmax_kernel<kPack> : log_softmax_kernel<1>,
         Elements<const float>{logits.f32(), logits.stride}, targets.i32(), log_prob.f32(), lse.f32(), logits.cols);
}

void log_softmax_backward(cudaStream_t stream, ConstView targets, ConstView lse, ConstView coefficient,
                          ConstView logits, View d_logits) {
  const bool packed = rows_begin_at_packs(logits) && rows_begin_at_packs(d_logits);
  typed(d_logits, [&]<class Y>(Y out) {
    launch(stream, "log_softmax_backward", rows_of(logits), dim3(kRowThreads),
           packed ? log_softmax_backward_kernel<kPack, Y> : log_softmax_backward_kernel<1, Y>,
           Elements<const float>{logits.f32(), logits.stride}, targets.i32(), lse.f32(), coefficient.f32(), out,
           logits.cols);
  });
}

}  // namespace fedpdpo::cuda
