// Where tests/golden is.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace fedpdpo::test {

/// In $FEDPDPO_SOURCE_DIR where that is set (tests carried to another machine by jobs/bundle.sh), else in the tree that
/// the test was built from.
inline std::filesystem::path golden_folder() {
  const char* moved = std::getenv("FEDPDPO_SOURCE_DIR");
  return std::filesystem::path(moved != nullptr ? moved : FEDPDPO_SOURCE_DIR) / "tests" / "golden";
}

}  // namespace fedpdpo::test
