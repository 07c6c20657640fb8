// LoRA sites as transformers and PEFT know them: the module's name and how its weight is stored (in which order its
// rows are, ModelConfig::checkpoint_row says).
#pragma once

#include <string>

#include "fedpdpo/model/config.hpp"

namespace fedpdpo {

/// Name of a site's module in a layer, e.g. "model.layers.3.self_attn.q_proj".
std::string module_name(const ModelConfig& config, std::int64_t layer, const LinearSite& site);
/// True where the family's linear modules keep their weights as (in, out), as GPT-2's Conv1D does (PEFT's
/// fan_in_fan_out).
bool stores_transposed(const ModelConfig& config);

/// Path of the module that makes logits in transformers 5, and so in PEFT's files: the same in every family.
inline constexpr const char* head_module = "lm_head";
/// Name of its weight in a checkpoint of the whole model.
std::string head_weight(const ModelConfig& config);
/// Name of the token embedding's weight in a checkpoint of the whole model.
std::string embedding_weight(const ModelConfig& config);
/// What checkpoints of the bare model leave out of every name but the head's, e.g. "model.".
std::string backbone_prefix(const ModelConfig& config);

}  // namespace fedpdpo
