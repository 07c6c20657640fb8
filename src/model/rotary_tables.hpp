// Rotary embeddings by position.
#pragma once

#include <vector>

#include "fedpdpo/model/config.hpp"

namespace fedpdpo {

struct RotaryTables {
  std::vector<float> cos, sin;  // (P, rotary_dim / 2), P = config.table_positions()
};

/// transformers' rotary frequencies, with Llama 3's rescaling of the low ones.
RotaryTables rotary_tables(const ModelConfig& config);

}  // namespace fedpdpo
