// A file that appears whole or not at all: written under a temporary name in the same folder, synced, renamed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace fedpdpo {

class AtomicFile {
 public:
  /// Opens the temporary file .NAME.tmp-PID; InputError, which names `option`, if the folder cannot be written.
  explicit AtomicFile(std::filesystem::path path, std::string option = {});
  /// Without a commit() before it, removes the temporary file and leaves `path` as it was.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  /// Syncs, renames over `path`, syncs the folder.
  void commit();

 private:
  [[noreturn]] void fail(const char* action) const;

  std::filesystem::path path_;
  std::string option_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  bool present_ = false;  // the temporary file exists
};

}  // namespace fedpdpo
