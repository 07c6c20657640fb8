// Names in PEFT's adapter files.
#pragma once

#include <string>

namespace fedpdpo {

/// In front of a module's path in adapter_model.safetensors.
inline const std::string peft_prefix = "base_model.model.";

}  // namespace fedpdpo
