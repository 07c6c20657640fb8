// Writing HDF5. The content is kept in our own tree and the file is made anew, in memory and in sorted order, by every
// save(): a resumed run and an uninterrupted one that hold the same content write the same bytes.
#include <algorithm>
#include <cstring>
#include <map>
#include <variant>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "hdf5_handle.hpp"

namespace fedpdpo {
namespace {

using namespace hdf5;

enum class Kind : std::uint8_t { group, u8, i32, u32, i64, u64, f32, f64, text };

template <class T>
constexpr Kind kind_of = Kind::group;
template <>
constexpr Kind kind_of<std::uint8_t> = Kind::u8;
template <>
constexpr Kind kind_of<std::int32_t> = Kind::i32;
template <>
constexpr Kind kind_of<std::uint32_t> = Kind::u32;
template <>
constexpr Kind kind_of<std::int64_t> = Kind::i64;
template <>
constexpr Kind kind_of<std::uint64_t> = Kind::u64;
template <>
constexpr Kind kind_of<float> = Kind::f32;
template <>
constexpr Kind kind_of<double> = Kind::f64;

using AttributeValue = std::variant<std::string, std::int64_t, double>;

struct Node {
  Kind kind = Kind::group;
  std::vector<hsize_t> shape;
  std::vector<std::byte> values;
  std::vector<std::string> texts;
  std::map<std::string, AttributeValue> attributes;
};

// Types in the file are little-endian on every machine.
hid_t file_type(Kind kind) {
  switch (kind) {
    case Kind::u8:
      return H5T_STD_U8LE;
    case Kind::i32:
      return H5T_STD_I32LE;
    case Kind::u32:
      return H5T_STD_U32LE;
    case Kind::i64:
      return H5T_STD_I64LE;
    case Kind::u64:
      return H5T_STD_U64LE;
    case Kind::f32:
      return H5T_IEEE_F32LE;
    case Kind::f64:
      return H5T_IEEE_F64LE;
    default:
      return H5I_INVALID_HID;
  }
}

hid_t memory_type(Kind kind) {
  switch (kind) {
    case Kind::u8:
      return native_type<std::uint8_t>();
    case Kind::i32:
      return native_type<std::int32_t>();
    case Kind::u32:
      return native_type<std::uint32_t>();
    case Kind::i64:
      return native_type<std::int64_t>();
    case Kind::u64:
      return native_type<std::uint64_t>();
    case Kind::f32:
      return native_type<float>();
    case Kind::f64:
      return native_type<double>();
    default:
      return H5I_INVALID_HID;
  }
}

// The library failing in memory is no fault of the user's.
template <class Result>
Result require(Result result) {
  if (result < 0) check(false, "HDF5: " + last_error());
  return result;
}

Type text_type() {
  Type type(require(H5Tcopy(H5T_C_S1)));
  require(H5Tset_size(type.get(), H5T_VARIABLE));
  require(H5Tset_cset(type.get(), H5T_CSET_UTF8));
  return type;
}

void write_attribute(hid_t object, const std::string& name, const AttributeValue& value) {
  const Space scalar(require(H5Screate(H5S_SCALAR)));
  const Properties properties(require(H5Pcreate(H5P_ATTRIBUTE_CREATE)));
  require(H5Pset_char_encoding(properties.get(), H5T_CSET_UTF8));
  const auto write = [&](hid_t stored, hid_t memory, const void* source) {
    const Attribute attribute(
        require(H5Acreate2(object, name.c_str(), stored, scalar.get(), properties.get(), H5P_DEFAULT)));
    require(H5Awrite(attribute.get(), memory, source));
  };
  if (const auto* text = std::get_if<std::string>(&value)) {
    const Type type = text_type();
    const char* source = text->c_str();
    write(type.get(), type.get(), &source);
  } else if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    write(H5T_STD_I64LE, H5T_NATIVE_INT64, integer);
  } else {
    write(H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &std::get<double>(value));
  }
}

void write_node(hid_t file, const std::string& path, const Node& node) {
  const Properties links(require(H5Pcreate(H5P_LINK_CREATE)));
  require(H5Pset_char_encoding(links.get(), H5T_CSET_UTF8));
  if (node.kind == Kind::group) {
    const Group group(path == "/" ? require(H5Gopen2(file, "/", H5P_DEFAULT))
                                  : require(H5Gcreate2(file, path.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT)));
    for (const auto& [name, value] : node.attributes) write_attribute(group.get(), name, value);
    return;
  }
  const bool is_text = node.kind == Kind::text;
  const Type text = text_type();
  const Properties properties(require(H5Pcreate(H5P_DATASET_CREATE)));
  require(H5Pset_obj_track_times(properties.get(), false));
  const Space space(node.shape.empty()
                        ? require(H5Screate(H5S_SCALAR))
                        : require(H5Screate_simple(static_cast<int>(node.shape.size()), node.shape.data(), nullptr)));
  const Dataset dataset(require(H5Dcreate2(file, path.c_str(), is_text ? text.get() : file_type(node.kind), space.get(),
                                           links.get(), properties.get(), H5P_DEFAULT)));
  std::vector<const char*> pointers;
  for (const std::string& value : node.texts) pointers.push_back(value.c_str());
  const void* source = is_text ? static_cast<const void*>(pointers.data()) : node.values.data();
  if (is_text ? !pointers.empty() : !node.values.empty()) {
    require(
        H5Dwrite(dataset.get(), is_text ? text.get() : memory_type(node.kind), H5S_ALL, H5S_ALL, H5P_DEFAULT, source));
  }
  for (const auto& [name, value] : node.attributes) write_attribute(dataset.get(), name, value);
}

}  // namespace

struct Hdf5Writer::Impl {
  std::map<std::string, Node> nodes{{"/", Node{}}};  // a group comes before what it holds

  Node& group(std::string_view name) {
    check(name.starts_with('/'), "an HDF5 path begins with '/'");
    if (name == "/") return nodes["/"];
    check(
        !name.ends_with('/') && name.find("//") == std::string_view::npos && name.find('\0') == std::string_view::npos,
        "a malformed HDF5 path");
    group(name.substr(0, std::max<std::size_t>(name.rfind('/'), 1)));
    Node& node = nodes[std::string(name)];
    check(node.kind == Kind::group, "a dataset of the name of a group exists");
    return node;
  }

  // The dataset of that name, new or with the same kind and shape.
  Node& dataset(std::string_view name, Kind kind, std::vector<hsize_t> shape, std::string_view units,
                std::string_view description) {
    check(name.starts_with('/') && name.size() > 1, "an HDF5 path begins with '/'");
    const auto found = nodes.find(std::string(name));
    if (found != nodes.end()) {
      check(found->second.kind == kind && found->second.shape == shape,
            "an HDF5 dataset written again with another type or shape: " + std::string(name));
    } else {
      Node& made = group(name);  // checks the path and makes the parents
      made.kind = kind;
      made.shape = std::move(shape);
    }
    Node& node = nodes[std::string(name)];
    node.attributes["units"] = std::string(units);
    node.attributes["description"] = std::string(description);
    return node;
  }

  std::vector<std::byte> image() const {
    silence_library();
    const Properties access(require(H5Pcreate(H5P_FILE_ACCESS)));
    require(H5Pset_fapl_core(access.get(), std::size_t{1} << 20, false));
    const Properties creation(require(H5Pcreate(H5P_FILE_CREATE)));
    require(H5Pset_obj_track_times(creation.get(), false));
    const File file(require(H5Fcreate("in-memory.h5", H5F_ACC_TRUNC, creation.get(), access.get())));
    for (const auto& [path, node] : nodes) write_node(file.get(), path, node);
    require(H5Fflush(file.get(), H5F_SCOPE_GLOBAL));
    std::vector<std::byte> bytes(static_cast<std::size_t>(require(H5Fget_file_image(file.get(), nullptr, 0))));
    require(H5Fget_file_image(file.get(), bytes.data(), bytes.size()));
    return bytes;
  }
};

Hdf5Writer::Hdf5Writer() : impl_(std::make_unique<Impl>()) {}
Hdf5Writer::~Hdf5Writer() = default;
Hdf5Writer::Hdf5Writer(Hdf5Writer&&) noexcept = default;
Hdf5Writer& Hdf5Writer::operator=(Hdf5Writer&&) noexcept = default;

void Hdf5Writer::group(std::string_view name) { impl_->group(name); }

void Hdf5Writer::attributes(std::string_view name, const std::map<std::string, std::string>& facts) {
  group(name);
  for (const auto& [fact, value] : facts) attribute<std::string>(name, fact, value);
}

template <class T>
void Hdf5Writer::attribute(std::string_view object, std::string_view name, const T& value) {
  const auto found = impl_->nodes.find(std::string(object));
  check(found != impl_->nodes.end(), "an attribute of an HDF5 object that does not exist: " + std::string(object));
  check(!name.empty() && name.find('\0') == std::string_view::npos, "a malformed HDF5 attribute name");
  if constexpr (std::is_same_v<T, std::string>) {
    check(value.find('\0') == std::string::npos, "an HDF5 string with a zero byte");
  }
  found->second.attributes[std::string(name)] = value;
}

template <class T>
void Hdf5Writer::write(std::string_view dataset, std::span<const T> values, std::span<const std::uint64_t> shape,
                       std::string_view units, std::string_view description) {
  std::uint64_t count = 1;
  for (const std::uint64_t extent : shape) count *= extent;
  check(count == values.size(), "an HDF5 dataset's values differ from its shape: " + std::string(dataset));
  Node& node = impl_->dataset(dataset, kind_of<T>, {shape.begin(), shape.end()}, units, description);
  const auto bytes = std::as_bytes(values);
  node.values.assign(bytes.begin(), bytes.end());
}

void Hdf5Writer::write_strings(std::string_view dataset, std::span<const std::string> values, std::string_view units,
                               std::string_view description) {
  for (const std::string& value : values)
    check(value.find('\0') == std::string::npos, "an HDF5 string with a zero byte");
  impl_->dataset(dataset, Kind::text, {values.size()}, units, description).texts.assign(values.begin(), values.end());
}

void Hdf5Writer::save(const std::filesystem::path& path) { write_file_atomically(path, impl_->image()); }

template void Hdf5Writer::attribute(std::string_view, std::string_view, const std::string&);
template void Hdf5Writer::attribute(std::string_view, std::string_view, const std::int64_t&);
template void Hdf5Writer::attribute(std::string_view, std::string_view, const double&);
#define FEDPDPO_INSTANTIATE(T)                                                                          \
  template void Hdf5Writer::write(std::string_view, std::span<const T>, std::span<const std::uint64_t>, \
                                  std::string_view, std::string_view);
FEDPDPO_INSTANTIATE(std::uint8_t)
FEDPDPO_INSTANTIATE(std::int32_t)
FEDPDPO_INSTANTIATE(std::uint32_t)
FEDPDPO_INSTANTIATE(std::int64_t)
FEDPDPO_INSTANTIATE(std::uint64_t)
FEDPDPO_INSTANTIATE(float)
FEDPDPO_INSTANTIATE(double)
#undef FEDPDPO_INSTANTIATE

}  // namespace fedpdpo
