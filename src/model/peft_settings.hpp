// What adapter_config.json says of a LoRA, checked.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace fedpdpo {

struct PeftSettings {
  int rank = 8;
  double alpha = 8, dropout = 0;
  bool rank_stabilized = false;                         ///< scales are alpha / sqrt(rank)
  std::vector<std::pair<std::string, double>> ranks{};  ///< by pattern of module paths, the first that fits
  std::vector<std::pair<std::string, double>> alphas{};
  bool saves_head = false;  ///< the head is a saved module

  int rank_of(const std::string& module) const;
  /// Of the module's B A x.
  double scale_of(const std::string& module) const;
};

/// InputError for what is not plain LoRA of a causal model, naming the field. `head` is the one module that may be
/// saved whole.
PeftSettings read_peft_settings(const std::filesystem::path& file, const std::string& head);

}  // namespace fedpdpo
