// pairs.h5: reading with every check that keeps bad data out of the training loop, writing, and the union of files.
#include "fedpdpo/data/pairs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/hdf5.hpp"

namespace fedpdpo {
namespace {

constexpr std::string_view format_name = "fedpdpo-pairs";
constexpr std::int64_t format_version = 1;

[[noreturn]] void refuse(const std::filesystem::path& path, std::string_view field, std::string_view expected,
                         std::string_view found) {
  throw InputError(path.string(), field, expected, found);
}

std::string entry(std::string_view dataset, std::size_t index) { return fmt::format("{}[{}]", dataset, index); }

std::int64_t positive_attribute(const Hdf5Reader& reader, std::string_view name) {
  const auto value = reader.required_attribute<std::int64_t>("/", name);
  if (value <= 0) refuse(reader.path(), name, "a number above 0", std::to_string(value));
  return value;
}

void read_attributes(const Hdf5Reader& reader, PairFile& file) {
  const auto format = reader.required_attribute<std::string>("/", "format");
  if (format != format_name) refuse(file.path, "format", format_name, format);
  const auto version = reader.required_attribute<std::int64_t>("/", "version");
  if (version != format_version) {
    refuse(file.path, "version", std::to_string(format_version), std::to_string(version));
  }
  file.domain = reader.required_attribute<std::string>("/", "domain");
  if (file.domain.empty()) refuse(file.path, "domain", "a name", "an empty text");
  file.tokenizer_name = reader.required_attribute<std::string>("/", "tokenizer");
  file.tokenizer_sha256 = reader.required_attribute<std::string>("/", "tokenizer_sha256");
  file.vocab_size = positive_attribute(reader, "vocab_size");
  file.max_length = positive_attribute(reader, "max_length");
  file.source = reader.required_attribute<std::string>("/", "source");
  file.license = reader.required_attribute<std::string>("/", "license");
  const auto synthetic = reader.required_attribute<std::int64_t>("/", "synthetic");
  if (synthetic != 0 && synthetic != 1) refuse(file.path, "synthetic", "0 or 1", std::to_string(synthetic));
  file.synthetic = synthetic == 1;
}

void require_length(const PairFile& file, std::string_view dataset, std::size_t expected, std::size_t found) {
  if (found != expected) {
    refuse(file.path, dataset, fmt::format("{} entries", expected), fmt::format("{} entries", found));
  }
}

RaggedTokens read_ragged(const Hdf5Reader& reader, const PairFile& file, const std::string& group) {
  const std::string tokens_name = group + "/tokens";
  const std::string offsets_name = group + "/offsets";
  RaggedTokens lists{reader.read<std::uint32_t>(tokens_name), reader.read<std::uint64_t>(offsets_name)};
  require_length(file, offsets_name, file.size() + 1, lists.offsets.size());
  if (lists.offsets.front() != 0) {
    refuse(file.path, entry(offsets_name, 0), "0", std::to_string(lists.offsets.front()));
  }
  for (std::size_t i = 1; i < lists.offsets.size(); ++i) {
    if (lists.offsets[i] <= lists.offsets[i - 1]) {
      refuse(file.path, entry(offsets_name, i),
             fmt::format("more than {} (offsets rise, no list is empty)", lists.offsets[i - 1]),
             std::to_string(lists.offsets[i]));
    }
  }
  if (lists.offsets.back() != lists.tokens.size()) {
    refuse(file.path, entry(offsets_name, file.size()), fmt::format("{}, the number of tokens", lists.tokens.size()),
           std::to_string(lists.offsets.back()));
  }
  const auto bad = std::find_if(lists.tokens.begin(), lists.tokens.end(), [&](std::uint32_t token) {
    return static_cast<std::int64_t>(token) >= file.vocab_size;
  });
  if (bad != lists.tokens.end()) {
    refuse(file.path, entry(tokens_name, static_cast<std::size_t>(bad - lists.tokens.begin())),
           fmt::format("a token id below vocab_size {}", file.vocab_size), std::to_string(*bad));
  }
  return lists;
}

void read_labels(const Hdf5Reader& reader, PairFile& file) {
  file.label = reader.read<std::int32_t>("/label");
  if (file.label.empty()) refuse(file.path, "/label", "at least one pair", "none");
  file.label_names = reader.read_strings("/label_names");
  std::vector<std::string> sorted = file.label_names;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    refuse(file.path, "/label_names", "names that differ", fmt::format("'{}' twice", *twice));
  }
  for (std::size_t i = 0; i < file.size(); ++i) {
    if (file.label[i] < 0 || static_cast<std::size_t>(file.label[i]) >= file.label_names.size()) {
      refuse(file.path, entry("/label", i), fmt::format("an index into {} label names", file.label_names.size()),
             std::to_string(file.label[i]));
    }
  }
}

void read_splits(const Hdf5Reader& reader, PairFile& file) {
  const auto codes = reader.read<std::uint8_t>("/split");
  require_length(file, "/split", file.size(), codes.size());
  file.split.reserve(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] >= split_names.size()) {
      refuse(file.path, entry("/split", i), "0 (train), 1 (validation) or 2 (test)", std::to_string(codes[i]));
    }
    file.split.push_back(static_cast<Split>(codes[i]));
  }
}

// Positions run to prompt + longer response; models have tables of that length.
void require_lengths_within_maximum(const PairFile& file) {
  for (std::size_t i = 0; i < file.size(); ++i) {
    const std::size_t length = file.prompt[i].size() + std::max(file.chosen[i].size(), file.rejected[i].size());
    if (length > static_cast<std::size_t>(file.max_length)) {
      refuse(file.path, fmt::format("pair {}", i), fmt::format("at most max_length {} tokens", file.max_length),
             std::to_string(length));
    }
  }
}

void write_ragged(Hdf5Writer& writer, const std::string& part, const RaggedTokens& lists) {
  const std::uint64_t num_tokens = lists.tokens.size();
  const std::uint64_t num_offsets = lists.offsets.size();
  writer.write<std::uint32_t>("/" + part + "/tokens", lists.tokens, std::span(&num_tokens, 1), "token id",
                              part + " token ids of all pairs, end to end");
  writer.write<std::uint64_t>("/" + part + "/offsets", lists.offsets, std::span(&num_offsets, 1), "tokens",
                              "pair i's " + part + " is tokens[offsets[i] : offsets[i + 1]]");
}

std::uint32_t largest_token(const PairFile& file) {
  std::uint32_t largest = 0;
  for (const RaggedTokens* lists : {&file.prompt, &file.chosen, &file.rejected}) {
    for (const std::uint32_t token : lists->tokens) largest = std::max(largest, token);
  }
  return largest;
}

}  // namespace

PairFile read_pair_file(const std::filesystem::path& path) {
  const Hdf5Reader reader(path);
  PairFile file;
  file.path = path;
  read_attributes(reader, file);
  read_labels(reader, file);
  read_splits(reader, file);
  file.prompt = read_ragged(reader, file, "/prompt");
  file.chosen = read_ragged(reader, file, "/chosen");
  file.rejected = read_ragged(reader, file, "/rejected");
  require_lengths_within_maximum(file);
  file.content_hash = sha256_file(path);
  return file;
}

void write_pair_file(const std::filesystem::path& path, const PairFile& pairs) {
  Hdf5Writer writer;
  const auto set_text = [&](std::string_view name, std::string_view value) {
    writer.attribute<std::string>("/", name, std::string(value));
  };
  const auto set_number = [&](std::string_view name, std::int64_t value) {
    writer.attribute<std::int64_t>("/", name, value);
  };
  set_text("format", format_name);
  set_number("version", format_version);
  set_text("domain", pairs.domain);
  set_text("tokenizer", pairs.tokenizer_name);
  set_text("tokenizer_sha256", pairs.tokenizer_sha256);
  set_number("vocab_size", pairs.vocab_size);
  set_number("max_length", pairs.max_length);
  set_text("source", pairs.source);
  set_text("license", pairs.license);
  set_number("synthetic", pairs.synthetic ? 1 : 0);
  set_text("report", "{}");
  write_ragged(writer, "prompt", pairs.prompt);
  write_ragged(writer, "chosen", pairs.chosen);
  write_ragged(writer, "rejected", pairs.rejected);
  const std::uint64_t num_pairs = pairs.label.size();
  writer.write<std::int32_t>("/label", pairs.label, std::span(&num_pairs, 1), "index",
                             "category of each pair, an index into label_names");
  writer.write_strings("/label_names", pairs.label_names, "name", "names of the categories");
  std::vector<std::uint8_t> codes;
  for (const Split split : pairs.split) codes.push_back(static_cast<std::uint8_t>(split));
  const std::uint64_t num_codes = codes.size();
  writer.write<std::uint8_t>("/split", codes, std::span(&num_codes, 1), "code", "0 train, 1 validation, 2 test");
  writer.save(path);
}

std::string content_hashes(const PairSet& pairs) {
  std::string hashes;
  for (const PairFile& file : pairs.files) hashes += (hashes.empty() ? "" : " ") + file.content_hash;
  return hashes;
}

PairSet join_pair_files(std::vector<PairFile> files) {
  if (files.empty()) throw InputError("", "--data", "at least one pair file", "none");
  const PairFile& first = files.front();
  for (std::size_t i = 1; i < files.size(); ++i) {
    const PairFile& file = files[i];
    if (file.tokenizer_sha256 != first.tokenizer_sha256) {
      refuse(file.path, "tokenizer_sha256",
             fmt::format("{} ('{}') as in {}", first.tokenizer_sha256, first.tokenizer_name, first.path.string()),
             fmt::format("{} ('{}')", file.tokenizer_sha256, file.tokenizer_name));
    }
    if (file.vocab_size != first.vocab_size) {
      refuse(file.path, "vocab_size", fmt::format("{} as in {}", first.vocab_size, first.path.string()),
             std::to_string(file.vocab_size));
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (file.domain == files[j].domain) {
        refuse(file.path, "domain", "a name that no other file of the list has",
               fmt::format("'{}' as in {}", file.domain, files[j].path.string()));
      }
    }
  }

  PairSet set;
  const bool several = files.size() > 1;
  for (const PairFile& file : files) {
    const auto base = static_cast<std::int32_t>(set.label_names.size());
    for (const std::string& name : file.label_names) {
      set.label_names.push_back(several ? file.domain + "/" + name : name);
    }
    std::vector<std::int32_t>& labels = set.global_label.emplace_back(file.label);
    for (std::int32_t& label : labels) label += base;
  }
  set.files = std::move(files);
  return set;
}

PairSet read_pair_set(std::span<const std::filesystem::path> paths) {
  std::vector<PairFile> files;
  files.reserve(paths.size());
  for (const std::filesystem::path& path : paths) files.push_back(read_pair_file(path));
  return join_pair_files(std::move(files));
}

void require_matching_tokenizer(const PairSet& pairs, const std::string& tokenizer_sha256,
                                std::int64_t model_vocab_size, const std::filesystem::path& model) {
  for (const PairFile& file : pairs.files) {
    if (file.tokenizer_sha256 != tokenizer_sha256) {
      refuse(file.path, "tokenizer_sha256", fmt::format("{}, the tokenizer of {}", tokenizer_sha256, model.string()),
             fmt::format("{} ('{}')", file.tokenizer_sha256, file.tokenizer_name));
    }
    // A tokenizer may name tokens that the model lacks (a padding token, say): only those in use matter.
    if (file.vocab_size <= model_vocab_size) continue;
    const std::uint32_t largest = largest_token(file);
    if (static_cast<std::int64_t>(largest) >= model_vocab_size) {
      refuse(file.path, "vocab_size",
             fmt::format("token ids below {}, the vocabulary of {}", model_vocab_size, model.string()),
             std::to_string(largest));
    }
  }
}

}  // namespace fedpdpo
