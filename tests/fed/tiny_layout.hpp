// A model with one linear map of 2 x 2 that carries LoRA: small enough for sums by hand.
#pragma once

#include <vector>

#include "fedpdpo/model/layout.hpp"

namespace fedpdpo::test {

/// One layer, d = 2; o_proj is the only site.
inline ModelConfig tiny_model() {
  ModelConfig config;
  config.family = "llama";
  config.vocab_size = 3;
  config.hidden_size = config.intermediate_size = config.head_dim = 2;
  config.num_layers = config.num_heads = config.num_kv_heads = 1;
  config.max_positions = 8;
  config.rotary_dim = 2;
  config.layer_prefix = "model.layers.";
  config.sites = {{Block::output, "self_attn.o_proj", 0, 2}};
  return config;
}

inline AdapterOptions tiny_adapter(int rank, double alpha, PersonalLora personal = PersonalLora::none) {
  AdapterOptions options;
  options.lora_rank = rank;
  options.lora_alpha = alpha;
  options.personal_lora = personal;
  return options;
}

}  // namespace fedpdpo::test
