// Preference pairs: the pairs.h5 files of data_prep and the union of several of them.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace fedpdpo {

enum class Split : std::uint8_t { train = 0, validation = 1, test = 2 };
inline constexpr std::array<const char*, 3> split_names{"train", "validation", "test"};

/// Lists of tokens, ragged.
struct RaggedTokens {
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint64_t> offsets;  // (n + 1)

  std::span<const std::uint32_t> operator[](std::size_t i) const {
    return std::span(tokens).subspan(offsets[i], offsets[i + 1] - offsets[i]);
  }
};

/// One pairs.h5, checked: format and version, offsets that rise and end at the number of tokens, token ids below
/// the vocabulary, non-empty prompts and responses, prompt and longer response within max_length, at least one pair,
/// labels with names that differ, known splits, equal lengths everywhere. InputError names file, dataset and the first
/// bad entry.
struct PairFile {
  std::filesystem::path path;
  std::string content_hash;  ///< SHA-256 of the file
  std::string domain;
  std::string tokenizer_name;
  std::string tokenizer_sha256;
  std::int64_t vocab_size = 0;
  std::int64_t max_length = 0;
  std::string source;
  std::string license;
  bool synthetic = false;
  RaggedTokens prompt, chosen, rejected;
  std::vector<std::int32_t> label;
  std::vector<std::string> label_names;
  std::vector<Split> split;

  std::size_t size() const { return label.size(); }
  /// Tokens of a pair when the prompt is counted once.
  std::size_t num_tokens(std::size_t pair) const {
    return prompt[pair].size() + chosen[pair].size() + rejected[pair].size();
  }
};

PairFile read_pair_file(const std::filesystem::path& path);
/// Writes the same format (tests and the bench make their pairs with it).
void write_pair_file(const std::filesystem::path& path, const PairFile& pairs);

/// Names a pair of a PairSet.
struct PairId {
  std::uint32_t file = 0;
  std::uint32_t index = 0;
  auto operator<=>(const PairId&) const = default;
};

/// One or more pair files, with one list of labels: "DOMAIN/label" where there are several files, else "label".
struct PairSet {
  std::vector<PairFile> files;
  std::vector<std::string> label_names;
  std::vector<std::vector<std::int32_t>> global_label;  // [file][pair] -> index into label_names

  std::int32_t label(PairId id) const { return global_label[id.file][id.index]; }
};

/// The union of files in their order. InputError if there is none, or two of them have the same domain name, different
/// tokenizers or vocabularies.
PairSet join_pair_files(std::vector<PairFile> files);
/// The files' content hashes in their order, separated by blanks: names the pairs wherever they lie.
std::string content_hashes(const PairSet& pairs);
/// Reads the files in order and joins them.
PairSet read_pair_set(std::span<const std::filesystem::path> paths);
/// InputError unless the files were made with this tokenizer and all token ids in them fit the model's vocabulary (the
/// tokenizer's own may be larger).
void require_matching_tokenizer(const PairSet& pairs, const std::string& tokenizer_sha256,
                                std::int64_t model_vocab_size, const std::filesystem::path& model);

}  // namespace fedpdpo
