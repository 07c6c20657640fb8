// HDF5, serial, with handles that close themselves. hdf5.h is included by the source files alone. Reading errors are
// InputErrors that name file, object, expected and found.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fedpdpo {

/// A file being read.
class Hdf5Reader {
 public:
  /// InputError if the file is missing, not HDF5, or truncated.
  explicit Hdf5Reader(const std::filesystem::path& path);
  ~Hdf5Reader();
  Hdf5Reader(Hdf5Reader&&) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&&) noexcept;

  const std::filesystem::path& path() const;
  /// True where a group or dataset of that name ("/a/b") exists.
  bool exists(std::string_view object) const;
  /// Names of the members of a group, sorted.
  std::vector<std::string> members(std::string_view group) const;

  /// Attributes of an object ("/" for the root). T: std::string, std::int64_t, double.
  template <class T>
  std::optional<T> attribute(std::string_view object, std::string_view name) const;
  template <class T>
  T required_attribute(std::string_view object, std::string_view name) const;

  /// The extent of a dataset.
  std::vector<std::uint64_t> shape(std::string_view dataset) const;
  /// The whole dataset in row-major order. T: std::uint8_t, std::int32_t, std::uint32_t, std::int64_t,
  /// std::uint64_t, float, double. The stored class (integer or floating) must match; integers that do not fit
  /// T are an error, never a wrap.
  template <class T>
  std::vector<T> read(std::string_view dataset) const;
  /// A one-dimensional dataset of strings.
  std::vector<std::string> read_strings(std::string_view dataset) const;
  /// SHA-256 in lower-case hex over names, shapes and values of all datasets below those of the groups that exist: the
  /// same for files that hold the same numbers, whatever their attributes and their layout on disk.
  std::string content_hash(std::span<const std::string_view> groups) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A file being made in memory. save() writes its present content under `path` atomically, so that what lies on
/// disk is a whole, valid file at every moment, also while the run goes on and after a kill. The bytes depend on the
/// content alone, not on the order of the calls or on earlier values.
class Hdf5Writer {
 public:
  Hdf5Writer();
  ~Hdf5Writer();
  Hdf5Writer(Hdf5Writer&&) noexcept;
  Hdf5Writer& operator=(Hdf5Writer&&) noexcept;

  /// Makes a group and its missing parents; no error if it exists.
  void group(std::string_view name);
  /// A group with these attributes.
  void attributes(std::string_view group, const std::map<std::string, std::string>& facts);
  /// Sets (replaces) an attribute of a group or dataset that exists. T: std::string, std::int64_t, double.
  template <class T>
  void attribute(std::string_view object, std::string_view name, const T& value);
  /// Creates a dataset (its parents too) or, if it exists with the same type and shape, overwrites its values. T as in
  /// Hdf5Reader::read. `units` and `description` become its attributes.
  template <class T>
  void write(std::string_view dataset, std::span<const T> values, std::span<const std::uint64_t> shape,
             std::string_view units, std::string_view description);
  /// The same for a list.
  template <class T>
  void write_list(std::string_view dataset, const std::vector<T>& values, std::string_view units,
                  std::string_view description) {
    write<T>(dataset, values, std::vector<std::uint64_t>{values.size()}, units, description);
  }
  void write_strings(std::string_view dataset, std::span<const std::string> values, std::string_view units,
                     std::string_view description);
  /// Writes the file as it is now; all or nothing. The same content gives the same bytes (no time stamps).
  void save(const std::filesystem::path& path);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fedpdpo
