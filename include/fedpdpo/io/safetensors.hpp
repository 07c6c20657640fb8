// The safetensors format (8-byte little-endian header length, JSON header, data): a memory-mapped reader that
// trusts nothing, and a writer. Checked on opening: header length, JSON, dtypes, shapes against byte ranges,
// ranges in bounds, none overlapping, no holes; the first mistake is an InputError naming file and tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/io/file.hpp"

namespace fedpdpo {

enum class StoredType : std::uint8_t { f64, f32, f16, bf16, i64, i32, u64, u32, u8, boolean };

std::size_t stored_type_size(StoredType type);
std::string_view stored_type_name(StoredType type);           ///< the format's own name, e.g. "BF16"
std::string shape_text(std::span<const std::int64_t> shape);  ///< "[2, 3]"

struct StoredTensor {
  StoredType type;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  ///< inside the mapping, or a copy where the file's layout misaligns the type

  std::int64_t num_elements() const;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
  /// InputError "FILE: tensor NAME: expected ..., found none" where it is missing.
  const StoredTensor& at(std::string_view name) const;
  /// The tensor's elements as they lie; InputError if type or shape differ from what is expected
  /// (an empty expected shape accepts any).
  template <class T>
  std::span<const T> read(std::string_view name, std::span<const std::int64_t> shape = {}) const;

 private:
  std::filesystem::path path_;
  MappedFile file_;
  std::vector<std::unique_ptr<std::byte[]>> realigned_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

/// One tensor to write; the bytes stay the caller's.
struct TensorToWrite {
  std::string name;
  StoredType type;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Convenience: a one-dimensional (or shaped) tensor over a span of float, double, std::int64_t,
/// std::uint64_t, std::uint32_t, std::int32_t or std::uint8_t.
template <class T>
TensorToWrite tensor_to_write(std::string name, std::span<const T> values, std::vector<std::int64_t> shape = {});

/// Writes all tensors in the given order, the first one 8-byte aligned, and returns the SHA-256 of the file.
/// All or nothing, as write_file_atomically, but streamed: no second copy of the data in memory.
std::string write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace fedpdpo
