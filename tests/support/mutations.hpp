// Damaged copies of a file's bytes.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "fedpdpo/core/random.hpp"

namespace fedpdpo::test {

/// One to eight changes of a byte, an insertion or a deletion, or a cut, in the first `reach` bytes.
inline std::string mutated(std::string text, RandomStream& random, std::size_t reach) {
  const std::size_t changes = 1 + random.below(8);
  for (std::size_t i = 0; i < changes && !text.empty(); ++i) {
    const std::size_t at = random.below(std::min(reach, text.size()));
    const auto byte = static_cast<char>(random.below(256));
    switch (random.below(8)) {
      case 0:
        text.insert(at, 1, byte);
        break;
      case 1:
        text.erase(at, 1 + random.below(4));
        break;
      case 2:
        text[at] = static_cast<char>(text[at] ^ (1 << random.below(8)));
        break;
      case 3: {
        constexpr std::string_view tokens = "{}[]\",:0123456789-eE.";
        text[at] = tokens[random.below(tokens.size())];
        break;
      }
      case 4:
        if (random.below(8) == 0) text.resize(at);
        break;
      default:
        text[at] = byte;
    }
  }
  return text;
}

}  // namespace fedpdpo::test
