// LoRA sites as transformers and PEFT know them.
#include "stored_sites.hpp"

#include <fmt/format.h>

#include "family.hpp"

namespace fedpdpo {

std::string module_name(const ModelConfig& config, std::int64_t layer, const LinearSite& site) {
  return fmt::format("{}{}.{}", config.layer_prefix, layer, site.module);
}

bool stores_transposed(const ModelConfig& config) {
  for (const auto& block : family_of(config).names(config).blocks)
    for (const SourceTensor& source : block)
      if (source.transposed) return true;
  return false;
}

std::int64_t module_row(const ModelConfig&, const LinearSite&, std::int64_t row) { return row; }

std::string head_module(const ModelConfig& config) { return family_of(config).names(config).head; }

std::string embedding_weight(const ModelConfig& config) {
  const FamilyNames names = family_of(config).names(config);
  return names.prefix + names.embedding + ".weight";
}

std::string backbone_prefix(const ModelConfig& config) { return family_of(config).names(config).prefix; }

}  // namespace fedpdpo
