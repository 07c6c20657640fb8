// A model family: how its config.json reads, and where each part of the backbone lies in its checkpoints. To add one:
// its source file, its line in family.cpp, its golden test.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/model/config.hpp"

namespace fedpdpo {

/// How checkpoints store the weights of linear modules.
enum class LinearStorage : std::uint8_t {
  out_in,  ///< torch.nn.Linear
  in_out,  ///< GPT-2's Conv1D
};

/// Names of the parts of a layer and of the rest, without ".weight" / ".bias"; those of linear modules are the sites'
/// (ModelConfig::sites). Empty where the family has none.
struct FamilyNames {
  std::string prefix;  ///< of everything but the head, e.g. "model."; tried first with, then without it
  std::string layers;  ///< below the prefix, e.g. "layers."
  std::string embedding, position_embedding, final_norm, head;
  std::string attention_norm, mlp_norm;  ///< below a layer
  std::string query_norm, key_norm;      ///< below a layer, where ModelConfig::head_norm
  LinearStorage linear_storage = LinearStorage::out_in;
};

struct Family {
  std::string_view model_type;
  std::string_view architecture;
  /// Everything but `sites`.
  void (*read)(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& config);
  /// The linear modules of a layer, once the sizes are known to be within bounds.
  std::vector<LinearSite> (*sites)(const ModelConfig& config);
  FamilyNames (*names)();
};

const std::vector<Family>& families();
/// The family of config.family, which must be known.
const Family& family_of(const ModelConfig& config);

// The families.
extern const Family llama_family;
extern const Family mistral_family;
extern const Family qwen2_family;
extern const Family qwen3_family;
extern const Family gpt2_family;
extern const Family gpt_neox_family;

}  // namespace fedpdpo
