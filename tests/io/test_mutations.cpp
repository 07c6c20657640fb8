// Files with flipped bits, missing ends and random garbage: each must be refused with an InputError or give a
// consistent file; never a crash, another exception or, under the sanitizers, a report.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <map>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "fedpdpo/io/safetensors.hpp"
#include "safetensors_builder.hpp"
#include "support/mutations.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::mutated;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

struct Outcome {
  int accepted = 0;
  int refused = 0;
};

class SafetensorsMutations : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<float> a{1, 2, 3, 4, 5, 6};
    const std::vector<std::uint8_t> b{1, 2, 3};
    const std::vector<double> c{0.5};
    const std::vector<TensorToWrite> tensors{tensor_to_write<float>("layer.weight", a, {2, 3}),
                                             tensor_to_write<std::uint8_t>("odd", b), tensor_to_write<double>("c", c)};
    write_safetensors(folder_ / "whole", tensors, {{"format", "pt"}});
    whole_ = read_text(folder_ / "whole");
    header_end_ = whole_.size() - (24 + 3 + 8);
  }

  void try_file(const std::string& bytes) {
    write_text(folder_ / "mutated", bytes);
    try {
      test::touch_everything(SafetensorsFile(folder_ / "mutated"));
      ++outcome_.accepted;
    } catch (const InputError& error) {
      ++outcome_.refused;
      ASSERT_TRUE(test::is_one_line(error.what())) << error.what();
      ASSERT_NE(std::string_view(error.what()).find("mutated"), std::string_view::npos) << "names the file";
    }
  }

  TemporaryFolder folder_;
  std::string whole_;
  std::size_t header_end_ = 0;
  Outcome outcome_;
};

TEST_F(SafetensorsMutations, TheWholeFileIsFine) {
  try_file(whole_);
  EXPECT_EQ(outcome_.accepted, 1);
}

TEST_F(SafetensorsMutations, EveryBitOfTheHeader) {
  for (std::size_t byte = 0; byte < header_end_; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = whole_;
      bytes[byte] = static_cast<char>(bytes[byte] ^ (1 << bit));
      ASSERT_NO_THROW(try_file(bytes)) << "byte " << byte << " bit " << bit;
    }
  }
  EXPECT_GT(outcome_.refused, 1000);
  EXPECT_GT(outcome_.accepted, 50);  // letters of names may change
}

TEST_F(SafetensorsMutations, EveryTruncationIsRefused) {
  for (std::size_t size = 0; size < whole_.size(); ++size) {
    ASSERT_NO_THROW(try_file(whole_.substr(0, size))) << size;
  }
  EXPECT_EQ(outcome_.accepted, 0);
}

TEST_F(SafetensorsMutations, EveryHeaderLength) {
  for (std::uint64_t length = 0; length < whole_.size() + 16; ++length) {
    ASSERT_NO_THROW(try_file(test::length_prefix(length) + whole_.substr(8))) << length;
  }
  EXPECT_GE(outcome_.accepted, 1);
  EXPECT_LE(outcome_.accepted, 8);  // the padding may be counted as data by nobody
}

TEST_F(SafetensorsMutations, RandomChanges) {
  RandomStream random({.seed = 1});
  for (int i = 0; i < 10000; ++i) {
    const std::string bytes = mutated(whole_, random, header_end_);
    ASSERT_NO_THROW(try_file(bytes)) << "mutation " << i;
  }
  EXPECT_GT(outcome_.refused, 5000);
  EXPECT_GT(outcome_.accepted, 10);
}

// What the reader can be asked about a file, but for strings of variable length: for those HDF5's library believes any
// length that a damaged file states, and takes gigabytes or overruns its buffers.
void read_everything(const Hdf5Reader& reader, const std::string& group, int depth) {
  const auto ignore = [](const std::function<void()>& ask) {
    try {
      ask();
    } catch (const InputError& error) {
      if (!test::is_one_line(error.what())) throw std::logic_error("an error of several lines");
    }
  };
  ignore([&] {
    for (const char* name : {"text", "units", "description", "int", "float", "long"}) {
      ignore([&] { reader.attribute<std::int64_t>(group, name); });
      ignore([&] { reader.attribute<double>(group, name); });
    }
    for (const std::string& member : reader.members(group)) {
      const std::string path = (group == "/" ? "" : group) + "/" + member;
      ignore([&] { reader.shape(path); });
      ignore([&] { reader.read<std::uint32_t>(path); });
      ignore([&] { reader.read<std::int64_t>(path); });
      ignore([&] { reader.read<double>(path); });
      if (depth < 2) read_everything(reader, path, depth + 1);
    }
  });
}

class Hdf5Mutations : public testing::Test {
 protected:
  void SetUp() override {
    Hdf5Writer writer;
    const std::vector<std::uint32_t> tokens(300, 7);
    writer.write<std::uint32_t>("/prompt/tokens", tokens, std::array<std::uint64_t, 1>{300}, "token", "tokens");
    writer.write<double>("/x", std::array<double, 2>{1, 2}, std::array<std::uint64_t, 2>{2, 1}, "unit", "x");
    writer.write_strings("/label_names", std::vector<std::string>{"a", "bc"}, "name", "names");
    writer.attribute<std::string>("/", "text", "fedpdpo-pairs");
    writer.attribute<std::int64_t>("/", "int", 1);
    writer.save(folder_ / "own.h5");
  }

  TemporaryFolder folder_;
};

TEST_F(Hdf5Mutations, EveryTruncationIsRefused) {
  const std::string whole = read_text(folder_ / "own.h5");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_text(folder_ / "cut.h5", std::string_view(whole).substr(0, size));
    EXPECT_INPUT_ERROR(Hdf5Reader(folder_ / "cut.h5"), "cut.h5: expected a whole HDF5 file");
  }
}

// HDF5's library itself overruns memory on some damaged files, which is its to mend; a child process tells that apart
// from an exception of ours that is no InputError.
TEST_F(Hdf5Mutations, RandomChangesGiveInputErrors) {
  constexpr int fine = 10, refused = 11, wrong = 12, rounds = 200;
  std::map<int, int> counts;
  for (const std::filesystem::path& source :
       {folder_ / "own.h5", std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests/io/data/h5py_types.h5"}) {
    const std::string whole = read_text(source);
    RandomStream random({.seed = 2});
    for (int i = 0; i < rounds; ++i) {
      std::string bytes = whole;
      for (std::size_t change = 0; change < 16; ++change) {
        bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
      }
      write_text(folder_ / "mutated.h5", bytes);
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        ::alarm(20);
        ::close(STDERR_FILENO);
        try {
          read_everything(Hdf5Reader(folder_ / "mutated.h5"), "/", 0);
          ::_exit(fine);
        } catch (const InputError&) {
          ::_exit(refused);
        } catch (...) {
          ::_exit(wrong);
        }
      }
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      EXPECT_NE(code, wrong) << source << " mutation " << i;
      ++counts[code];
    }
  }
  EXPECT_GT(counts[refused], 0);
  EXPECT_GT(counts[fine] + counts[refused], 2 * rounds * 9 / 10);
}

}  // namespace
}  // namespace fedpdpo
