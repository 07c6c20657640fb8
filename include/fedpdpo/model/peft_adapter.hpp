// A trained model in PEFT's layout: adapter_config.json and adapter_model.safetensors. LoRA is PEFT's own; a full head
// is a saved module; a low-rank head is a LoRA of the head with a rank and a scale of its own. Bottleneck and reward
// head are not PEFT's: private_modules.hpp.
#pragma once

#include <filesystem>
#include <string>

#include "fedpdpo/model/trained_model.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

inline constexpr const char* adapter_config_name = "adapter_config.json";
inline constexpr const char* adapter_weights_name = "adapter_model.safetensors";

/// Writes both files into `folder`, which exists. `base` is what PEFT is told of the base model: a name or a path. The
/// model's residual is not part of an adapter: it must be empty.
void write_peft_adapter(const std::filesystem::path& folder, const ModelConfig& config, const TrainedModel& model,
                        const std::string& base);

/// Reads an adapter that was trained on `base`, whoever wrote it: LoRA of any ranks and scales by module, on any of the
/// layers' linear modules, a saved or LoRA-adapted head. InputError names the setting or the tensor that this program
/// does not know, so that nothing is left out in silence. Modules without LoRA in some layers get one of zeros.
TrainedModel read_peft_adapter(const std::filesystem::path& folder, const ModelFolder& base);

}  // namespace fedpdpo
