// log p(target) and its gradient, a block a row of the vocabulary: the maximum, then the sum of exp(l - max), whose
// fp32 terms are added in double. Log-sum-exp and target logit come from the same fp32 numbers.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr unsigned kRowThreads = 512;

__global__ void log_softmax_kernel(ConstView logits, ConstView targets, View log_prob, View lse) {
  const std::int64_t i = blockIdx.x;
  const float* row = row_of(logits, i);
  float maximum = -INFINITY;
  for (std::int64_t c = threadIdx.x; c < logits.cols; c += blockDim.x) maximum = fmaxf(maximum, row[c]);
  maximum = block_max(maximum);
  double sum = 0;
  for (std::int64_t c = threadIdx.x; c < logits.cols; c += blockDim.x)
    sum += static_cast<double>(expf(row[c] - maximum));
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const double log_sum = log(sum), target = row[static_cast<const std::int32_t*>(targets.data)[i]];
  row_of(lse, 0)[i] = static_cast<float>(static_cast<double>(maximum) + log_sum);
  row_of(log_prob, 0)[i] = static_cast<float>((target - static_cast<double>(maximum)) - log_sum);
}

}  // namespace

void log_softmax(cudaStream_t stream, ConstView logits, ConstView targets, View log_prob, View lse) {
  launch(stream, "log_softmax", dim3(static_cast<unsigned>(logits.rows)), dim3(kRowThreads), log_softmax_kernel, logits,
         targets, log_prob, lse);
}

void log_softmax_backward(cudaStream_t stream, ConstView targets, ConstView lse, ConstView coefficient, View logits) {
  over_elements(stream, "log_softmax_backward", logits.rows, logits.cols,
                [=] __device__(std::int64_t i, std::int64_t c) {
                  const float weight = row_of(coefficient, 0)[i];
                  float* at = row_of(logits, i) + c;
                  float value = weight == 0 ? 0.0f : -weight * expf(*at - row_of(lse, 0)[i]);
                  if (c == static_cast<const std::int32_t*>(targets.data)[i]) value += weight;
                  *at = value;
                });
}

}  // namespace fedpdpo::cuda
