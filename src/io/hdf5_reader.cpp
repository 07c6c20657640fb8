// Reading HDF5. A file may hold anything: before memory is taken for a dataset its extent is held against the bytes
// that the file stores for it, and integers are checked against the type that they are asked for as.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "digest.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "hdf5_handle.hpp"

namespace fedpdpo {
namespace {

using namespace hdf5;

constexpr std::uint64_t max_compression = 1100;  // deflate's ratio is at most 1032

std::string class_in_words(H5T_class_t type_class) {
  switch (type_class) {
    case H5T_INTEGER:
      return "integers";
    case H5T_FLOAT:
      return "floating-point numbers";
    case H5T_STRING:
      return "strings";
    case H5T_ENUM:
      return "an enumeration";
    case H5T_COMPOUND:
      return "a compound type";
    default:
      return "another type";
  }
}

// Where something is in a file, for the errors.
struct Place {
  const std::filesystem::path& file;
  std::string object;

  [[noreturn]] void fail(std::string_view expected, std::string_view found) const {
    throw InputError(file.string(), object, expected, found);
  }
  // The result of a call of the library, negative where it failed.
  template <class Result>
  Result require(Result result) const {
    if (result < 0) fail("readable HDF5", last_error());
    return result;
  }
};

std::uint64_t count_elements(const Space& space, const Place& place) {
  const hssize_t count = place.require(H5Sget_simple_extent_npoints(space.get()));
  return static_cast<std::uint64_t>(count);
}

struct NumberType {
  H5T_class_t type_class;
  std::size_t size;
  bool is_signed;
};

NumberType number_type(const Type& type, const Place& place) {
  NumberType result{H5Tget_class(type.get()), H5Tget_size(type.get()), false};
  if (result.type_class == H5T_INTEGER) result.is_signed = place.require(H5Tget_sign(type.get())) == H5T_SGN_2;
  return result;
}

// Reads numbers by `read(memory type, buffer)`, which H5Dread and H5Aread both are.
template <class T, class Read>
std::vector<T> read_numbers(const NumberType& stored, std::uint64_t count, const Place& place, const Read& read) {
  constexpr bool wants_integer = std::is_integral_v<T>;
  if (stored.type_class != (wants_integer ? H5T_INTEGER : H5T_FLOAT)) {
    place.fail(class_in_words(wants_integer ? H5T_INTEGER : H5T_FLOAT), class_in_words(stored.type_class));
  }
  if (stored.size > 8) place.fail("numbers of at most 8 bytes", fmt::format("{} bytes", stored.size));
  std::vector<T> values(count);
  const auto read_checked = [&]<class Wide>(Wide) {
    std::vector<Wide> wide(count);
    place.require(read(native_type<Wide>(), wide.data()));
    for (std::size_t i = 0; i < wide.size(); ++i) {
      if constexpr (wants_integer) {
        if (!std::in_range<T>(wide[i])) {
          place.fail(
              fmt::format("integers from {} to {}", std::numeric_limits<T>::min(), std::numeric_limits<T>::max()),
              fmt::format("{} in entry {}", wide[i], i));
        }
      } else if (std::isfinite(wide[i]) && std::abs(wide[i]) > std::numeric_limits<T>::max()) {
        place.fail("numbers that fit 32 bits", fmt::format("{} in entry {}", wide[i], i));
      }
      values[i] = static_cast<T>(wide[i]);
    }
  };
  const bool fits = wants_integer ? (stored.is_signed == std::is_signed_v<T> && stored.size <= sizeof(T)) ||
                                        (!stored.is_signed && stored.size < sizeof(T))
                                  : stored.size <= sizeof(T);
  if (fits) {
    place.require(read(native_type<T>(), values.data()));
  } else if constexpr (!wants_integer) {
    read_checked(double{});
  } else if (stored.is_signed) {
    read_checked(std::int64_t{});
  } else {
    read_checked(std::uint64_t{});
  }
  return values;
}

std::string trimmed(const char* text, std::size_t size, H5T_str_t padding) {
  std::string_view view(text, size);
  if (padding == H5T_STR_SPACEPAD) {
    view = view.substr(0, view.find_last_not_of(' ') + 1);
  } else if (padding == H5T_STR_NULLPAD) {
    view = view.substr(0, view.find_last_not_of('\0') + 1);
  } else {
    view = view.substr(0, view.find('\0'));
  }
  return std::string(view);
}

// Strings of fixed or variable length, ASCII or UTF-8.
template <class Read>
std::vector<std::string> read_texts(const Type& type, const Space& space, const Place& place, const Read& read) {
  if (H5Tget_class(type.get()) != H5T_STRING) {
    place.fail(class_in_words(H5T_STRING), class_in_words(H5Tget_class(type.get())));
  }
  const std::uint64_t count = count_elements(space, place);
  std::vector<std::string> texts(count);
  if (count == 0) return texts;
  if (place.require(H5Tis_variable_str(type.get())) == 0) {
    const std::size_t size = H5Tget_size(type.get());
    const H5T_str_t padding = place.require(H5Tget_strpad(type.get()));
    std::vector<char> buffer(count * size);
    place.require(read(type.get(), buffer.data()));
    for (std::size_t i = 0; i < count; ++i) texts[i] = trimmed(buffer.data() + i * size, size, padding);
    return texts;
  }
  // The library converts between lengths but not between character sets: ask for the stored one.
  const Type memory(place.require(H5Tcopy(H5T_C_S1)));
  place.require(H5Tset_size(memory.get(), H5T_VARIABLE));
  place.require(H5Tset_cset(memory.get(), place.require(H5Tget_cset(type.get()))));
  std::vector<char*> pointers(count, nullptr);
  const herr_t status = read(memory.get(), pointers.data());
  const std::string reason = status < 0 ? last_error() : "";
  for (std::size_t i = 0; i < count; ++i) {
    if (pointers[i] != nullptr) texts[i] = pointers[i];
    H5free_memory(pointers[i]);
  }
  if (status < 0) place.fail("readable HDF5", reason);
  return texts;
}

// Refuses extents that the file cannot hold.
void require_stored(const Dataset& dataset, const Type& type, const Space& space, std::uint64_t file_size,
                    const Place& place) {
  const std::uint64_t count = count_elements(space, place);
  const std::size_t size = H5Tget_size(type.get());
  if (count == 0) return;
  const Properties properties(place.require(H5Dget_create_plist(dataset.get())));
  const bool chunked = place.require(H5Pget_layout(properties.get())) == H5D_CHUNKED;
  const std::uint64_t stored = std::min<std::uint64_t>(H5Dget_storage_size(dataset.get()), file_size);
  const std::uint64_t possible = chunked ? stored * max_compression : stored;
  if (size == 0 || count > possible / size) {
    place.fail(fmt::format("at most {} bytes, which the file stores", possible),
               fmt::format("{} entries of {} bytes", count, size));
  }
}

}  // namespace

struct Hdf5Reader::Impl {
  std::filesystem::path path;
  std::uint64_t size = 0;
  File file;

  Place place(std::string_view object) const { return {path, std::string(object)}; }

  bool exists(std::string_view object) const {
    const Place where = place(object);
    if (!object.starts_with('/')) return false;
    // Every step of the way is asked for: the library fails on a path through a missing group.
    for (std::size_t end = 1; end < object.size(); ++end) {
      end = std::min(object.find('/', end), object.size());
      const std::string step(object.substr(0, end));
      if (where.require(H5Lexists(file.get(), step.c_str(), H5P_DEFAULT)) == 0) return false;
      if (where.require(H5Oexists_by_name(file.get(), step.c_str(), H5P_DEFAULT)) == 0) return false;
    }
    return true;
  }

  Object open(std::string_view object) const {
    const Place where = place(object);
    if (!exists(object)) where.fail("it to be there", "none");
    return Object(where.require(H5Oopen(file.get(), where.object.c_str(), H5P_DEFAULT)));
  }

  Dataset dataset(std::string_view object) const {
    const Place where = place(object);
    if (!exists(object)) where.fail("a dataset", "none");
    {
      const Object opened = open(object);
      if (H5Iget_type(opened.get()) != H5I_DATASET) where.fail("a dataset", "another kind of object");
    }
    return Dataset(where.require(H5Dopen2(file.get(), where.object.c_str(), H5P_DEFAULT)));
  }
};

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->size = MappedFile(path).bytes().size();  // its errors are plainer than the library's
  silence_library();
  const Place where{path, ""};
  const Properties access(where.require(H5Pcreate(H5P_FILE_ACCESS)));
  // Many cluster file systems have no locks, and files are replaced by renaming, never written in place.
  where.require(H5Pset_file_locking(access.get(), false, true));
  impl_->file = File(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
  if (!impl_->file) {
    const std::string reason = last_error();
    where.fail("a whole HDF5 file", reason);
  }
}

Hdf5Reader::~Hdf5Reader() = default;
Hdf5Reader::Hdf5Reader(Hdf5Reader&&) noexcept = default;
Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&&) noexcept = default;

const std::filesystem::path& Hdf5Reader::path() const { return impl_->path; }

bool Hdf5Reader::exists(std::string_view object) const { return impl_->exists(object); }

std::vector<std::string> Hdf5Reader::members(std::string_view group) const {
  const Place where = impl_->place(group);
  const Object opened = impl_->open(group);
  if (H5Iget_type(opened.get()) != H5I_GROUP) where.fail("a group", "another kind of object");
  H5G_info_t info{};
  where.require(H5Gget_info(opened.get(), &info));
  std::vector<std::string> names;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    const auto name_of = [&](char* buffer, std::size_t size) {
      return where.require(
          H5Lget_name_by_idx(opened.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i, buffer, size, H5P_DEFAULT));
    };
    std::string name(static_cast<std::size_t>(name_of(nullptr, 0)), '\0');
    name_of(name.data(), name.size() + 1);
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <class T>
std::optional<T> Hdf5Reader::attribute(std::string_view object, std::string_view name) const {
  const Object opened = impl_->open(object);
  const Place where = impl_->place(fmt::format("{} attribute {}", object, name));
  const std::string key(name);
  if (where.require(H5Aexists(opened.get(), key.c_str())) == 0) return std::nullopt;
  const Attribute attribute(where.require(H5Aopen(opened.get(), key.c_str(), H5P_DEFAULT)));
  const Type type(where.require(H5Aget_type(attribute.get())));
  const Space space(where.require(H5Aget_space(attribute.get())));
  const std::uint64_t count = count_elements(space, where);
  if (count != 1) where.fail("one value", fmt::format("{}", count));
  if (H5Tget_size(type.get()) > impl_->size) where.fail("a value within the file", "a longer one");
  const auto read = [&](hid_t memory, void* buffer) { return H5Aread(attribute.get(), memory, buffer); };
  if constexpr (std::is_same_v<T, std::string>) {
    return read_texts(type, space, where, read).front();
  } else {
    const NumberType stored = number_type(type, where);
    if (std::is_same_v<T, double> && stored.type_class == H5T_INTEGER) {
      return static_cast<T>(read_numbers<std::int64_t>(stored, 1, where, read).front());
    }
    return read_numbers<T>(stored, 1, where, read).front();
  }
}

template <class T>
T Hdf5Reader::required_attribute(std::string_view object, std::string_view name) const {
  std::optional<T> value = attribute<T>(object, name);
  if (!value) impl_->place(fmt::format("{} attribute {}", object, name)).fail("it to be there", "none");
  return *std::move(value);
}

std::vector<std::uint64_t> Hdf5Reader::shape(std::string_view dataset) const {
  const Place where = impl_->place(dataset);
  const Dataset opened = impl_->dataset(dataset);
  const Space space(where.require(H5Dget_space(opened.get())));
  if (H5Sget_simple_extent_type(space.get()) == H5S_NULL) return {0};
  std::vector<hsize_t> extents(static_cast<std::size_t>(where.require(H5Sget_simple_extent_ndims(space.get()))));
  if (!extents.empty()) where.require(H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr));
  return {extents.begin(), extents.end()};
}

template <class T>
std::vector<T> Hdf5Reader::read(std::string_view dataset) const {
  const Place where = impl_->place(dataset);
  const Dataset opened = impl_->dataset(dataset);
  const Type type(where.require(H5Dget_type(opened.get())));
  const Space space(where.require(H5Dget_space(opened.get())));
  const NumberType stored = number_type(type, where);
  require_stored(opened, type, space, impl_->size, where);
  return read_numbers<T>(stored, count_elements(space, where), where, [&](hid_t memory, void* buffer) {
    return H5Dread(opened.get(), memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer);
  });
}

std::vector<std::string> Hdf5Reader::read_strings(std::string_view dataset) const {
  const Place where = impl_->place(dataset);
  const std::size_t rank = shape(dataset).size();
  if (rank != 1) where.fail("one dimension", fmt::format("{}", rank));
  const Dataset opened = impl_->dataset(dataset);
  const Type type(where.require(H5Dget_type(opened.get())));
  const Space space(where.require(H5Dget_space(opened.get())));
  require_stored(opened, type, space, impl_->size, where);
  return read_texts(type, space, where, [&](hid_t memory, void* buffer) {
    return H5Dread(opened.get(), memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer);
  });
}

std::string Hdf5Reader::content_hash(std::span<const std::string_view> groups) const {
  Sha256 hash;
  const auto add = [&](const auto& values) { hash.update(std::as_bytes(std::span(values))); };
  const auto add_text = [&](const std::string& text) {
    add(text);
    add(std::string_view("\0", 1));
  };
  const auto add_object = [&](const auto& self, const std::string& name) -> void {
    if (H5Iget_type(impl_->open(name).get()) == H5I_GROUP) {
      for (const std::string& member : members(name)) self(self, name + "/" + member);
      return;
    }
    const Place where = impl_->place(name);
    const Type type(where.require(H5Dget_type(impl_->dataset(name).get())));
    add_text(name);
    add(shape(name));
    if (H5Tget_class(type.get()) == H5T_STRING) {
      for (const std::string& text : read_strings(name)) add_text(text);
    } else if (H5Tget_class(type.get()) == H5T_FLOAT) {
      add(read<double>(name));
    } else if (number_type(type, where).is_signed) {
      add(read<std::int64_t>(name));
    } else {
      add(read<std::uint64_t>(name));
    }
  };
  for (std::string_view group : groups)
    if (exists(group)) add_object(add_object, std::string(group));
  return hash.finish();
}

template std::optional<std::string> Hdf5Reader::attribute(std::string_view, std::string_view) const;
template std::optional<std::int64_t> Hdf5Reader::attribute(std::string_view, std::string_view) const;
template std::optional<double> Hdf5Reader::attribute(std::string_view, std::string_view) const;
template std::string Hdf5Reader::required_attribute(std::string_view, std::string_view) const;
template std::int64_t Hdf5Reader::required_attribute(std::string_view, std::string_view) const;
template double Hdf5Reader::required_attribute(std::string_view, std::string_view) const;
template std::vector<std::uint8_t> Hdf5Reader::read(std::string_view) const;
template std::vector<std::int32_t> Hdf5Reader::read(std::string_view) const;
template std::vector<std::uint32_t> Hdf5Reader::read(std::string_view) const;
template std::vector<std::int64_t> Hdf5Reader::read(std::string_view) const;
template std::vector<std::uint64_t> Hdf5Reader::read(std::string_view) const;
template std::vector<float> Hdf5Reader::read(std::string_view) const;
template std::vector<double> Hdf5Reader::read(std::string_view) const;

}  // namespace fedpdpo
