// How the trainables move: AdamW with separate rates for what is shared and what is private.
#pragma once

#include <cstdint>

namespace fedpdpo {

enum class RateSchedule : std::uint8_t { constant, cosine };
enum class Moments : std::uint8_t { keep, reset };  ///< of Adam, from one round to the next

struct OptimizerOptions {
  double lr_shared = 1e-3;   ///< LoRA, whether it travels or not
  double lr_private = 1e-3;  ///< bottleneck, LLM head, reward head, personal LoRA
  double weight_decay = 0;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double clip = 1.0;  ///< largest norm of a client's gradient; 0: no clipping
  RateSchedule schedule = RateSchedule::constant;
  int warmup_rounds = 0;  ///< linear from 0
  Moments moments = Moments::keep;
};

/// Factor on the learning rates in a round (1-based) of `num_rounds`.
double rate_factor(const OptimizerOptions& options, int round, int num_rounds);

}  // namespace fedpdpo
