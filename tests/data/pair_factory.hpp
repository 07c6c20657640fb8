// Pair files made up in memory for tests: tokens drawn at random, responses that often begin alike.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/data/pairs.hpp"

namespace fedpdpo::test {

using TokenList = std::vector<std::uint32_t>;

inline void append_list(RaggedTokens& lists, const TokenList& tokens) {
  if (lists.offsets.empty()) lists.offsets.push_back(0);
  lists.tokens.insert(lists.tokens.end(), tokens.begin(), tokens.end());
  lists.offsets.push_back(lists.tokens.size());
}

inline PairFile empty_pair_file(const std::string& domain, const std::vector<std::string>& label_names) {
  PairFile file;
  file.path = domain + ".h5";
  file.domain = domain;
  file.tokenizer_name = "toy";
  file.tokenizer_sha256 = std::string(64, 'a');
  file.vocab_size = 32;
  file.max_length = 64;
  file.source = "made up";
  file.license = "CC0-1.0";
  file.synthetic = true;
  file.label_names = label_names;
  return file;
}

inline void append_pair(PairFile& file, const TokenList& prompt, const TokenList& chosen, const TokenList& rejected,
                        std::int32_t label = 0, Split split = Split::train) {
  append_list(file.prompt, prompt);
  append_list(file.chosen, chosen);
  append_list(file.rejected, rejected);
  file.label.push_back(label);
  file.split.push_back(split);
}

inline TokenList random_tokens(RandomStream& random, std::size_t length, std::uint64_t vocab) {
  TokenList tokens(length);
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random.below(vocab));
  return tokens;
}

/// Few different tokens, so that responses begin alike, are equal, or one is the other's beginning now and then.
inline void append_random_pair(PairFile& file, RandomStream& random, std::int32_t label = 0,
                               Split split = Split::train) {
  const auto vocab = 1 + random.below(3);
  const TokenList prompt = random_tokens(random, 1 + random.below(6), vocab);
  const TokenList chosen = random_tokens(random, 1 + random.below(7), vocab);
  const TokenList rejected = random_tokens(random, 1 + random.below(7), vocab);
  append_pair(file, prompt, chosen, rejected, label, split);
}

/// Pairs by label and split: counts[label][split]; their order in the file mixes labels and splits.
inline PairFile counted_pair_file(const std::string& domain, const std::vector<std::array<int, 3>>& counts) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < counts.size(); ++i) names.push_back("kind" + std::to_string(i));
  PairFile file = empty_pair_file(domain, names);
  RandomStream random({.seed = 7, .purpose = Purpose::test});
  std::vector<std::array<int, 3>> left = counts;
  for (bool any = true; any;) {
    any = false;
    for (std::size_t label = 0; label < left.size(); ++label) {
      for (std::size_t split = 0; split < 3; ++split) {
        if (left[label][split]-- <= 0) continue;
        any = true;
        append_random_pair(file, random, static_cast<std::int32_t>(label), static_cast<Split>(split));
      }
    }
  }
  return file;
}

}  // namespace fedpdpo::test
