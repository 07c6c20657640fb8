// A model family: how its config.json reads, and where each part of the backbone lies in its checkpoints. To add one:
// its source file, its line in family.cpp, its golden test.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/model/config.hpp"

namespace fedpdpo {

/// One stored tensor that makes up (a run of rows of) a part.
struct SourceTensor {
  std::string name;         ///< below the layer for layers' parts, whole otherwise
  std::int64_t rows = 0;    ///< rows of the part that it fills
  bool transposed = false;  ///< stored as (in, out), as GPT-2's Conv1D does
};

/// Names of the parts of a layer and of the rest. Empty where the family has none.
struct FamilyNames {
  std::string prefix;  ///< of everything but the head, e.g. "model."; tried first with, then without it
  std::string layers;  ///< below the prefix, e.g. "layers."
  std::string embedding, position_embedding, final_norm, head;  ///< without ".weight"
  std::string attention_norm, mlp_norm;
  std::array<std::vector<SourceTensor>, num_blocks> blocks;  ///< names without ".weight" / ".bias"
};

struct Family {
  std::string_view model_type;
  std::string_view architecture;
  void (*read)(const nlohmann::json& json, const std::filesystem::path& file, ModelConfig& config);
  FamilyNames (*names)(const ModelConfig& config);
};

const std::vector<Family>& families();
/// The family of config.family, which must be known.
const Family& family_of(const ModelConfig& config);

// The families.
extern const Family llama_family;
extern const Family gpt2_family;

}  // namespace fedpdpo
