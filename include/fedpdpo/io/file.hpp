// Files: memory-mapped reading, writing that is all or nothing, content hashes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace fedpdpo {

/// A whole file mapped read-only. Throws InputError naming the file if it cannot be opened.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// Writes under a temporary name in the same folder, syncs file and folder, renames over `path`: readers see
/// the old file or the new one, whole. Throws InputError if the folder cannot be written.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Throws InputError (naming `option`) unless a file could be created at `path`; leaves nothing behind.
void require_writable(const std::filesystem::path& path, std::string_view option);

/// One process at a time that writes `path`: PATH.lock, which goes with it. Where a file system knows no locks, a
/// warning.
class FileLock {
 public:
  /// InputError, naming `option`, where another process has it.
  FileLock(const std::filesystem::path& path, std::string_view option);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  std::filesystem::path lock_;
  int descriptor_ = -1;
};

/// Makes renames and removals in a folder durable (fsync); InputError if there is no such folder.
void sync_folder(const std::filesystem::path& folder);

/// SHA-256 in lower-case hex.
std::string sha256(std::span<const std::byte> bytes);
std::string sha256_file(const std::filesystem::path& path);

}  // namespace fedpdpo
