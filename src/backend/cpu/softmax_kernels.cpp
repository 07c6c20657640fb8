// log p(target) and its gradient by rows of the vocabulary. lse = max + log sum exp(l - max): two passes, the sum by
// runs of 1024 terms in vector lanes (each lane adds few terms) that are added up in double, so that its relative error
// stays near fp32's epsilon for any vocabulary.
#include <cmath>

#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/softmax_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

HWY_INLINE float row_maximum(const float* x, std::int64_t cols) {
  Vec m0 = splat(x[0]), m1 = m0, m2 = m0, m3 = m0;
  std::int64_t c = 0;
  for (; c + 4 * kLanes <= cols; c += 4 * kLanes) {
    m0 = hn::Max(m0, hn::LoadU(Floats(), x + c));
    m1 = hn::Max(m1, hn::LoadU(Floats(), x + c + kLanes));
    m2 = hn::Max(m2, hn::LoadU(Floats(), x + c + 2 * kLanes));
    m3 = hn::Max(m3, hn::LoadU(Floats(), x + c + 3 * kLanes));
  }
  for (; c + kLanes <= cols; c += kLanes) m0 = hn::Max(m0, hn::LoadU(Floats(), x + c));
  float best = hn::GetLane(hn::MaxOfLanes(Floats(), hn::Max(hn::Max(m0, m1), hn::Max(m2, m3))));
  for (; c < cols; ++c) best = x[c] > best ? x[c] : best;
  return best;
}

void LogSoftmax(ConstView logits, const std::int32_t* targets, float* log_prob, float* lse) {
  constexpr std::int64_t kRun = 1024;
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    const float* row = logits.f32() + i * logits.stride;
    const float maximum = row_maximum(row, logits.cols);
    const Vec shift = splat(maximum);
    double sum = 0;
    for (std::int64_t begin = 0; begin < logits.cols; begin += kRun) {
      const float* run = row + begin;
      sum += static_cast<double>(sum_columns(HWY_MIN(kRun, logits.cols - begin), [&](auto io, std::int64_t c) HWY_ATTR {
        const Vec x = hn::Sub(io.load(run + c), shift);
        return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(Floats(), x));  // Exp makes NaN 0
      }));
    }
    const double log_sum = std::log(sum);
    lse[i] = static_cast<float>(static_cast<double>(maximum) + log_sum);
    log_prob[i] = static_cast<float>((static_cast<double>(row[targets[i]]) - static_cast<double>(maximum)) - log_sum);
  }
}

void LogSoftmaxBackward(const std::int32_t* targets, const float* lse, const float* coefficient, ConstView logits,
                        View d_logits) {
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    const float* from = logits.f32() + i * logits.stride;
    float* row = d_logits.f32() + i * d_logits.stride;
    const float weight = coefficient[i];
    if (weight == 0) {
      for_columns(logits.cols, [&](auto io, std::int64_t c) HWY_ATTR { io.store(hn::Zero(Floats()), row + c); });
      continue;
    }
    const Vec shift = splat(lse[i]), scale = splat(-weight);
    for_columns(logits.cols, [&](auto io, std::int64_t c) HWY_ATTR {
      io.store(hn::Mul(scale, hn::Exp(Floats(), hn::Sub(io.load(from + c), shift))), row + c);
    });
    row[targets[i]] += weight;
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(LogSoftmax);
HWY_EXPORT(LogSoftmaxBackward);

void log_softmax(ConstView logits, const std::int32_t* targets, float* log_prob, float* lse) {
  HWY_DYNAMIC_DISPATCH(LogSoftmax)(logits, targets, log_prob, lse);
}
void log_softmax_backward(const std::int32_t* targets, const float* lse, const float* coefficient, ConstView logits,
                          View d_logits) {
  HWY_DYNAMIC_DISPATCH(LogSoftmaxBackward)(targets, lse, coefficient, logits, d_logits);
}

}  // namespace fedpdpo::cpu
#endif
