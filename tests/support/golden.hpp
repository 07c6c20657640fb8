// Where tests/golden is, and its models.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace fedpdpo::test {

/// In $FEDPDPO_SOURCE_DIR where that is set (tests carried to another machine by jobs/bundle.sh), else in the tree that
/// the test was built from.
inline std::filesystem::path golden_folder() {
  const char* moved = std::getenv("FEDPDPO_SOURCE_DIR");
  return std::filesystem::path(moved != nullptr ? moved : FEDPDPO_SOURCE_DIR) / "tests" / "golden";
}

/// Tiny models of all families.
inline const std::vector<std::string> golden_models{
    "tiny_llama", "tiny_llama_tied", "tiny_gpt2",     "tiny_mistral",
    "tiny_qwen2", "tiny_qwen3",      "tiny_gpt_neox", "tiny_gpt_neox_sequential"};

}  // namespace fedpdpo::test
