// Helpers for tests: folders that vanish, whole files in and out, and the check that bad input is refused with the
// right line.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo::test {

/// A fresh empty folder, removed with all it holds at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fedpdpo-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder: " + pattern);
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::filesystem::path& name) const { return path_ / name; }

  /// Paths of everything below the folder, relative to it and sorted.
  std::vector<std::string> contents() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path_)) {
      names.push_back(std::filesystem::relative(entry.path(), path_).string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::create_directories(path.parent_path());
  std::filesystem::remove(path);  // truncating in place makes some file systems wait for the disk
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream.flush()) throw std::runtime_error("cannot write " + path.string());
}

inline std::span<const std::byte> as_byte_span(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// True if `text` holds no line break: error lines must be one line.
inline bool is_one_line(std::string_view text) { return text.find_first_of("\r\n") == std::string_view::npos; }

}  // namespace fedpdpo::test

/// The statement must throw InputError whose one line contains `substring`.
#define EXPECT_INPUT_ERROR(statement, substring)                                                            \
  do {                                                                                                      \
    try {                                                                                                   \
      statement;                                                                                            \
      ADD_FAILURE() << #statement << " threw nothing; expected an InputError with '" << (substring) << "'"; \
    } catch (const fedpdpo::InputError& fedpdpo_error) {                                                    \
      const std::string fedpdpo_line = fedpdpo_error.what();                                                \
      EXPECT_NE(fedpdpo_line.find(substring), std::string::npos)                                            \
          << "the line is '" << fedpdpo_line << "', expected it to contain '" << (substring) << "'";        \
      EXPECT_TRUE(fedpdpo::test::is_one_line(fedpdpo_line)) << fedpdpo_line;                                \
    } catch (const std::exception& fedpdpo_error) {                                                         \
      ADD_FAILURE() << #statement << " threw '" << fedpdpo_error.what() << "', which is no InputError";     \
    }                                                                                                       \
  } while (false)

/// The statement must break a contract: std::logic_error (fedpdpo::check) whose text contains `substring`.
#define EXPECT_CONTRACT_VIOLATION(statement, substring)                                                      \
  do {                                                                                                       \
    try {                                                                                                    \
      statement;                                                                                             \
      ADD_FAILURE() << #statement << " threw nothing; expected a contract violation";                        \
    } catch (const std::logic_error& fedpdpo_error) {                                                        \
      EXPECT_NE(std::string(fedpdpo_error.what()).find(substring), std::string::npos)                        \
          << "the text is '" << fedpdpo_error.what() << "', expected it to contain '" << (substring) << "'"; \
    } catch (const std::exception& fedpdpo_error) {                                                          \
      ADD_FAILURE() << #statement << " threw '" << fedpdpo_error.what() << "', no contract violation";       \
    }                                                                                                        \
  } while (false)
