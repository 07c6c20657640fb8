// LoRA sites as transformers and PEFT know them.
#include "stored_sites.hpp"

#include <fmt/format.h>

#include "family.hpp"

namespace fedpdpo {

std::string module_name(const ModelConfig& config, std::int64_t layer, const LinearSite& site) {
  return fmt::format("{}{}.{}", config.layer_prefix, layer, site.module);
}

bool stores_transposed(const ModelConfig& config) {
  return family_of(config).names().linear_storage == LinearStorage::in_out;
}

std::string head_weight(const ModelConfig& config) { return family_of(config).names().head + ".weight"; }

std::string embedding_weight(const ModelConfig& config) {
  const FamilyNames names = family_of(config).names();
  return names.prefix + names.embedding + ".weight";
}

std::string backbone_prefix(const ModelConfig& config) { return family_of(config).names().prefix; }

}  // namespace fedpdpo
