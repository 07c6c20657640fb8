// Which trainable modules a client's model has (design 2). Plain values; app parses them, methods give their defaults.
#pragma once

#include <cstdint>
#include <string>

namespace fedpdpo {

enum class HeadKind : std::uint8_t {
  frozen,   ///< logits = H0 z
  full,     ///< logits = H z, all V x d trained, H = H0 at the start
  lowrank,  ///< logits = (H0 + Q P) z, Q (V, r_h) = 0 at the start, P (r_h, d)
};
enum class BottleneckKind : std::uint8_t {
  residual,  ///< z = h + U gelu(D h + b), U = 0 at the start
  gated,     ///< z = (1 - g) * h + g * U gelu(D h + b), g = 0 at the start
};
enum class RewardPool : std::uint8_t { last, mean };
/// A second LoRA that is the client's own, and how it goes with the shared one.
enum class PersonalLora : std::uint8_t {
  none,
  ditto,   ///< trained beside the shared one, drawn towards it; the client's model is the personal one alone
  apfl,    ///< the client's model is a learned mixture of the two, parameter by parameter
  feddpa,  ///< the client's model adds the two LoRAs' outputs, weighted by an instance's likeness to the client's data
};
/// Which of the two a pass uses.
enum class Adapter : std::uint8_t { shared, personal };
/// Where the gradient of the explicit reward goes behind its head.
enum class RewardGradient : std::uint8_t { all, private_only, none };

struct AdapterOptions {
  int lora_rank = 8;  ///< 0: no LoRA
  double lora_alpha = 16;
  std::string lora_targets = "all-linear";  ///< or a comma-separated list of module names, as PEFT's target_modules
  double lora_dropout = 0;
  int lora_first_layer = 0;  ///< layers below it carry no LoRA and need no backward pass
  PersonalLora personal_lora = PersonalLora::none;
  HeadKind head = HeadKind::frozen;
  int head_rank = 8;
  int bottleneck = 0;  ///< width m; 0: none
  BottleneckKind bottleneck_kind = BottleneckKind::residual;
  bool reward_head = false;
  RewardPool reward_pool = RewardPool::last;
  RewardGradient reward_gradient = RewardGradient::all;
};

}  // namespace fedpdpo
