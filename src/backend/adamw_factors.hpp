// AdamW's constants of one sweep, computed in double: both backends multiply by the same fp32 numbers.
#pragma once

#include <cmath>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

struct AdamWFactors {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_root_correction2, epsilon,
      gradient_scale;
};

inline AdamWFactors adamw_factors(const AdamW& o) {
  const auto step = static_cast<double>(o.step);
  const double correction1 = 1 - std::pow(static_cast<double>(o.beta1), step);
  const double correction2 = 1 - std::pow(static_cast<double>(o.beta2), step);
  const auto narrow = [](double value) { return static_cast<float>(value); };
  const double beta1 = o.beta1, beta2 = o.beta2, rate = o.learning_rate;
  return {.decay = narrow(1 - rate * o.weight_decay),
          .beta1 = o.beta1,
          .one_minus_beta1 = narrow(1 - beta1),
          .beta2 = o.beta2,
          .one_minus_beta2 = narrow(1 - beta2),
          .step_size = narrow(rate / correction1),
          .inverse_root_correction2 = narrow(1 / std::sqrt(correction2)),
          .epsilon = o.epsilon,
          .gradient_scale = o.gradient_scale};
}

}  // namespace fedpdpo
