// The registry of model families.
#include "family.hpp"

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

const std::vector<Family>& families() {
  static const std::vector<Family> all{llama_family, mistral_family, qwen2_family,
                                       qwen3_family, gpt2_family,    gpt_neox_family};
  return all;
}

const Family& family_of(const ModelConfig& config) {
  for (const Family& family : families())
    if (family.model_type == config.family) return family;
  contract_violation("family", "unknown model family " + config.family, std::source_location::current());
}

}  // namespace fedpdpo
