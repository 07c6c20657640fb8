// AdamW as torch.optim.AdamW: p <- p (1 - lr wd); m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2;
// p <- p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps). And the sum of products: the squared norm for clipping.
#include <cmath>

#include "adamw_factors.hpp"
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/optimizer_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

void AdamWSweep(const AdamWFactors& f, View values, ConstView gradients, View first_moment, View second_moment) {
  const Vec decay = splat(f.decay), scale = splat(f.gradient_scale), step_size = splat(f.step_size);
  const Vec beta1 = splat(f.beta1), beta2 = splat(f.beta2);
  const Vec rest1 = splat(f.one_minus_beta1), rest2 = splat(f.one_minus_beta2);
  const Vec correction2 = splat(f.inverse_root_correction2), epsilon = splat(f.epsilon);
  for (std::int64_t t = 0; t < values.rows; ++t) {
    float* p = values.f32() + t * values.stride;
    const float* g = gradients.f32() + t * gradients.stride;
    float* m = first_moment.f32() + t * first_moment.stride;
    float* v = second_moment.f32() + t * second_moment.stride;
    for_columns(values.cols, [&](auto io, std::int64_t c) HWY_ATTR {
      const Vec gradient = hn::Mul(scale, io.load(g + c));
      const Vec first = hn::MulAdd(beta1, io.load(m + c), hn::Mul(rest1, gradient));
      const Vec second = hn::MulAdd(beta2, io.load(v + c), hn::Mul(rest2, hn::Mul(gradient, gradient)));
      const Vec root = hn::MulAdd(hn::Sqrt(second), correction2, epsilon);
      const Vec update = hn::Mul(step_size, hn::Div(first, root));
      io.store(first, m + c);
      io.store(second, v + c);
      io.store(hn::MulSub(decay, io.load(p + c), update), p + c);
    });
  }
}

double SumOfProducts(const float* x, const float* y, std::int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  constexpr std::int64_t kStep = HWY_LANES(double);
  const auto load = [&](const float* p) HWY_ATTR { return hn::PromoteTo(d, hn::LoadU(half, p)); };
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  std::int64_t i = 0;
  for (; i + 4 * kStep <= count; i += 4 * kStep) {
    s0 = hn::MulAdd(load(x + i), load(y + i), s0);
    s1 = hn::MulAdd(load(x + i + kStep), load(y + i + kStep), s1);
    s2 = hn::MulAdd(load(x + i + 2 * kStep), load(y + i + 2 * kStep), s2);
    s3 = hn::MulAdd(load(x + i + 3 * kStep), load(y + i + 3 * kStep), s3);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < count; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(AdamWSweep);
HWY_EXPORT(SumOfProducts);

void adamw(const AdamW& options, View values, ConstView gradients, View first_moment, View second_moment) {
  HWY_DYNAMIC_DISPATCH(AdamWSweep)(adamw_factors(options), values, gradients, first_moment, second_moment);
}

double sum_of_products(const float* x, const float* y, std::int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SumOfProducts)(x, y, count);
}

}  // namespace fedpdpo::cpu
#endif
