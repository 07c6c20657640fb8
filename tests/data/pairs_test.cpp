// pairs.h5: what is written is read back; every kind of bad content is refused with file, dataset and entry.
#include "fedpdpo/data/pairs.hpp"

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "pair_factory.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

PairFile small_file(const std::string& domain = "toys") {
  PairFile file = empty_pair_file(domain, {"colour", "shape"});
  append_pair(file, {1, 2}, {3}, {4, 5}, 0, Split::train);
  append_pair(file, {6}, {7, 8}, {9}, 1, Split::validation);
  append_pair(file, {10, 11, 12}, {13}, {14}, 1, Split::test);
  return file;
}

void expect_equal(const RaggedTokens& a, const RaggedTokens& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.offsets, b.offsets);
}

TEST(PairFiles, WhatIsWrittenIsReadBack) {
  const TemporaryFolder folder;
  PairFile written = small_file();
  written.synthetic = true;
  write_pair_file(folder / "toys.h5", written);
  const PairFile read = read_pair_file(folder / "toys.h5");
  EXPECT_EQ(read.path, folder / "toys.h5");
  EXPECT_EQ(read.content_hash, sha256_file(folder / "toys.h5"));
  EXPECT_EQ(read.domain, "toys");
  EXPECT_EQ(read.tokenizer_name, "toy");
  EXPECT_EQ(read.tokenizer_sha256, written.tokenizer_sha256);
  EXPECT_EQ(read.vocab_size, 32);
  EXPECT_EQ(read.max_length, 64);
  EXPECT_EQ(read.source, "made up");
  EXPECT_EQ(read.license, "CC0-1.0");
  EXPECT_TRUE(read.synthetic);
  expect_equal(read.prompt, written.prompt);
  expect_equal(read.chosen, written.chosen);
  expect_equal(read.rejected, written.rejected);
  EXPECT_EQ(read.label, (std::vector<std::int32_t>{0, 1, 1}));
  EXPECT_EQ(read.label_names, (std::vector<std::string>{"colour", "shape"}));
  EXPECT_EQ(read.split, (std::vector<Split>{Split::train, Split::validation, Split::test}));
  EXPECT_EQ(read.num_tokens(0), 5u);
  EXPECT_EQ(read.num_tokens(2), 5u);

  written.synthetic = false;
  write_pair_file(folder / "toys.h5", written);
  EXPECT_FALSE(read_pair_file(folder / "toys.h5").synthetic);
}

struct BadFile {
  std::string name;
  std::function<void(PairFile&)> spoil;
  std::string expected_line;
};

class BadPairFiles : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadPairFiles, AreRefused) {
  const TemporaryFolder folder;
  const auto path = folder / "bad.h5";
  PairFile file = small_file();
  GetParam().spoil(file);
  write_pair_file(path, file);
  EXPECT_INPUT_ERROR(read_pair_file(path), path.string() + ": " + GetParam().expected_line);
}

INSTANTIATE_TEST_SUITE_P(
    Content, BadPairFiles,
    ::testing::Values(
        BadFile{"NoDomain", [](PairFile& f) { f.domain = ""; }, "domain: expected a name, found an empty text"},
        BadFile{"NoVocabulary", [](PairFile& f) { f.vocab_size = 0; },
                "vocab_size: expected a number above 0, found 0"},
        BadFile{"NegativeMaximum", [](PairFile& f) { f.max_length = -5; },
                "max_length: expected a number above 0, found -5"},
        BadFile{"TooLong", [](PairFile& f) { f.max_length = 3; },
                "pair 0: expected at most max_length 3 tokens, found 4"},
        BadFile{"TokenTooLarge", [](PairFile& f) { f.rejected.tokens[3] = 32; },
                "/rejected/tokens[3]: expected a token id below vocab_size 32, found 32"},
        BadFile{"TokenHuge", [](PairFile& f) { f.prompt.tokens[0] = 0xFFFFFFFFu; },
                "/prompt/tokens[0]: expected a token id below vocab_size 32, found 4294967295"},
        BadFile{"FirstOffset", [](PairFile& f) { f.chosen.offsets[0] = 1; }, "/chosen/offsets[0]: expected 0, found 1"},
        BadFile{"EmptyResponse", [](PairFile& f) { f.chosen.offsets[2] = 1; },
                "/chosen/offsets[2]: expected more than 1 (offsets rise, no list is empty), found 1"},
        BadFile{"FallingOffset", [](PairFile& f) { f.prompt.offsets[2] = 1; },
                "/prompt/offsets[2]: expected more than 2 (offsets rise, no list is empty), found 1"},
        BadFile{"OffsetBeyondTheEnd", [](PairFile& f) { f.chosen.offsets[3] = 5; },
                "/chosen/offsets[3]: expected 4, the number of tokens, found 5"},
        BadFile{"OffsetHuge", [](PairFile& f) { f.chosen.offsets[3] = ~std::uint64_t{0}; },
                "/chosen/offsets[3]: expected 4, the number of tokens, found 18446744073709551615"},
        BadFile{"TooFewOffsets", [](PairFile& f) { f.prompt.offsets.pop_back(); },
                "/prompt/offsets: expected 4 entries, found 3 entries"},
        BadFile{"TooManyOffsets", [](PairFile& f) { f.rejected.offsets.push_back(99); },
                "/rejected/offsets: expected 4 entries, found 5 entries"},
        BadFile{"FewerSplits", [](PairFile& f) { f.split.pop_back(); }, "/split: expected 3 entries, found 2 entries"},
        BadFile{"UnknownSplit", [](PairFile& f) { f.split[1] = static_cast<Split>(3); },
                "/split[1]: expected 0 (train), 1 (validation) or 2 (test), found 3"},
        BadFile{"LabelWithoutName", [](PairFile& f) { f.label[2] = 2; },
                "/label[2]: expected an index into 2 label names, found 2"},
        BadFile{"NegativeLabel", [](PairFile& f) { f.label[0] = -1; },
                "/label[0]: expected an index into 2 label names, found -1"},
        BadFile{"NameTwice", [](PairFile& f) { f.label_names[1] = "colour"; },
                "/label_names: expected names that differ, found 'colour' twice"}),
    [](const ::testing::TestParamInfo<BadFile>& param) { return param.param.name; });

TEST(PairFiles, OtherFormatsAreRefused) {
  const TemporaryFolder folder;
  const auto path = folder / "other.h5";
  EXPECT_INPUT_ERROR(read_pair_file(path), "other.h5");
  write_text(path, "not HDF5 at all");
  EXPECT_INPUT_ERROR(read_pair_file(path), "other.h5");

  Hdf5Writer writer;
  writer.attribute<std::string>("/", "format", "something-else");
  writer.save(path);
  EXPECT_INPUT_ERROR(read_pair_file(path), "format: expected fedpdpo-pairs, found something-else");
  writer.attribute<std::string>("/", "format", "fedpdpo-pairs");
  writer.save(path);
  EXPECT_INPUT_ERROR(read_pair_file(path), "version");
  writer.attribute<std::int64_t>("/", "version", 2);
  writer.save(path);
  EXPECT_INPUT_ERROR(read_pair_file(path), "version: expected 1, found 2");
  writer.attribute<std::int64_t>("/", "version", 1);
  writer.save(path);
  EXPECT_INPUT_ERROR(read_pair_file(path), "domain");
}

TEST(PairFiles, AFileWithoutPairsIsRefused) {
  const TemporaryFolder folder;
  PairFile file = empty_pair_file("toys", {"colour"});
  for (RaggedTokens* lists : {&file.prompt, &file.chosen, &file.rejected}) lists->offsets = {0};
  write_pair_file(folder / "none.h5", file);
  EXPECT_INPUT_ERROR(read_pair_file(folder / "none.h5"), "/label: expected at least one pair, found none");
}

// Values gone wrong anywhere in the datasets are refused, or harmless.
TEST(PairFiles, WrongValuesAreRefusedOrHarmless) {
  const TemporaryFolder folder;
  const auto path = folder / "toys.h5";
  RandomStream random({.seed = 3, .purpose = Purpose::test});
  int num_refused = 0;
  for (int trial = 0; trial < 200; ++trial) {
    PairFile bad = small_file();
    RaggedTokens& lists = *std::array{&bad.prompt, &bad.chosen, &bad.rejected}[random.below(3)];
    const std::uint64_t value = random.below(2) == 0 ? random.below(8) : std::uint64_t{random.next_u32()} << 20;
    switch (random.below(4)) {
      case 0:
        lists.offsets[random.below(lists.offsets.size())] = value;
        break;
      case 1:
        lists.tokens[random.below(lists.tokens.size())] = static_cast<std::uint32_t>(value);
        break;
      case 2:
        bad.label[random.below(3)] = static_cast<std::int32_t>(value);
        break;
      default:
        bad.split[random.below(3)] = static_cast<Split>(value);
    }
    write_pair_file(path, bad);
    try {
      const PairFile file = read_pair_file(path);
      ASSERT_EQ(file.size(), 3u);
      for (const RaggedTokens* read : {&file.prompt, &file.chosen, &file.rejected}) {
        std::size_t sum = 0;
        for (std::size_t i = 0; i < 3; ++i) {
          EXPECT_FALSE((*read)[i].empty());
          sum += (*read)[i].size();
          for (const std::uint32_t token : (*read)[i]) EXPECT_LT(token, 32u);
        }
        EXPECT_EQ(sum, read->tokens.size());
      }
      for (const std::int32_t label : file.label) EXPECT_TRUE(label == 0 || label == 1);
      for (const Split split : file.split) EXPECT_LE(static_cast<int>(split), 2);
    } catch (const InputError& error) {
      EXPECT_TRUE(is_one_line(error.what())) << error.what();
      EXPECT_NE(std::string(error.what()).find("toys.h5: /"), std::string::npos) << error.what();
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 100);
  EXPECT_LT(num_refused, 200);
}

TEST(PairFiles, TruncatedFilesAreRefused) {
  const TemporaryFolder folder;
  const auto path = folder / "toys.h5";
  write_pair_file(path, small_file());
  const std::string whole = read_text(path);
  for (int part = 0; part < 20; ++part) {
    write_text(path, std::string_view(whole).substr(0, whole.size() * static_cast<std::size_t>(part) / 20));
    EXPECT_INPUT_ERROR(read_pair_file(path), "toys.h5");
  }
}

TEST(PairSets, OneFileKeepsItsLabelNames) {
  const TemporaryFolder folder;
  write_pair_file(folder / "toys.h5", small_file());
  const std::vector<std::filesystem::path> paths{folder / "toys.h5"};
  const PairSet set = read_pair_set(paths);
  ASSERT_EQ(set.files.size(), 1u);
  EXPECT_EQ(set.label_names, (std::vector<std::string>{"colour", "shape"}));
  EXPECT_EQ(set.label({0, 2}), 1);
}

TEST(PairSets, SeveralFilesShareOneListOfLabels) {
  const TemporaryFolder folder;
  write_pair_file(folder / "a.h5", small_file("birds"));
  write_pair_file(folder / "b.h5", small_file("fish"));
  const std::vector<std::filesystem::path> paths{folder / "a.h5", folder / "b.h5"};
  const PairSet set = read_pair_set(paths);
  EXPECT_EQ(set.label_names, (std::vector<std::string>{"birds/colour", "birds/shape", "fish/colour", "fish/shape"}));
  EXPECT_EQ(set.label({0, 0}), 0);
  EXPECT_EQ(set.label({1, 0}), 2);
  EXPECT_EQ(set.label({1, 2}), 3);
  EXPECT_EQ(set.files[1].label[2], 1);
}

TEST(PairSets, FilesMustFitTogether) {
  EXPECT_INPUT_ERROR(join_pair_files({}), "--data: expected at least one pair file, found none");

  PairFile twin = small_file("birds");
  twin.path = "twin.h5";
  EXPECT_INPUT_ERROR(
      join_pair_files({small_file("birds"), small_file("fish"), twin}),
      "twin.h5: domain: expected a name that no other file of the list has, found 'birds' as in birds.h5");
  PairFile other = small_file("fish");
  other.tokenizer_sha256 = std::string(64, 'b');
  EXPECT_INPUT_ERROR(join_pair_files({small_file("birds"), other}), "fish.h5: tokenizer_sha256: expected aaaa");
  other = small_file("fish");
  other.vocab_size = 33;
  EXPECT_INPUT_ERROR(join_pair_files({small_file("birds"), other}),
                     "fish.h5: vocab_size: expected 32 as in birds.h5, found 33");
}

TEST(PairSets, MustFitTheModel) {
  const PairSet set = join_pair_files({small_file()});  // the largest token is 14
  const std::string hash(64, 'a');
  EXPECT_NO_THROW(require_matching_tokenizer(set, hash, 32, "model"));
  EXPECT_NO_THROW(require_matching_tokenizer(set, hash, 15, "model"));
  EXPECT_INPUT_ERROR(require_matching_tokenizer(set, hash, 14, "model"),
                     "toys.h5: vocab_size: expected token ids below 14, the vocabulary of model, found 14");
  EXPECT_INPUT_ERROR(require_matching_tokenizer(set, std::string(64, 'c'), 32, "model"),
                     "toys.h5: tokenizer_sha256: expected cccc");
}

}  // namespace
}  // namespace fedpdpo::test
