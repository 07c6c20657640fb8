// Reading and writing of safetensors files; what a header must be is in safetensors_header.cpp.
#include "fedpdpo/io/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "atomic_file.hpp"
#include "digest.hpp"
#include "fedpdpo/core/error.hpp"
#include "safetensors_header.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t length_bytes = 8;

template <class T>
constexpr StoredType stored_type_of = StoredType::u8;
template <>
constexpr StoredType stored_type_of<float> = StoredType::f32;
template <>
constexpr StoredType stored_type_of<double> = StoredType::f64;
template <>
constexpr StoredType stored_type_of<std::int64_t> = StoredType::i64;
template <>
constexpr StoredType stored_type_of<std::int32_t> = StoredType::i32;
template <>
constexpr StoredType stored_type_of<std::uint64_t> = StoredType::u64;
template <>
constexpr StoredType stored_type_of<std::uint32_t> = StoredType::u32;

// Byte by byte: the format is little-endian and the address need not be aligned.
std::uint64_t load_length(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

std::string header_text(std::span<const TensorToWrite> tensors, const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    // Paths and command lines of users may hold bytes that are no UTF-8.
    text +=
        "\"__metadata__\":" + nlohmann::json(metadata).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  std::set<std::string_view> names;
  std::uint64_t position = 0;
  for (const TensorToWrite& tensor : tensors) {
    check(tensor.name != "__metadata__" && names.insert(tensor.name).second, "tensor name twice or reserved");
    const std::optional<std::uint64_t> size = tensor_bytes(tensor.type, tensor.shape);
    check(size && *size == tensor.bytes.size(), "a tensor's bytes differ from its shape");
    if (text.size() > 1) text += ',';
    text += fmt::format(R"({}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", nlohmann::json(tensor.name).dump(),
                        stored_type_name(tensor.type), shape_text(tensor.shape), position, position + *size);
    position += *size;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  check(text.size() <= max_safetensors_header, "a safetensors header of more than 100 MB");
  return text;
}

}  // namespace

std::int64_t StoredTensor::num_elements() const {
  return static_cast<std::int64_t>(bytes.size() / stored_type_size(type));
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path), file_(path) {
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < length_bytes) {
    throw InputError(path.string(), "", "a safetensors file", fmt::format("{} bytes", bytes.size()));
  }
  const std::uint64_t length = load_length(bytes);
  const std::uint64_t available = std::min<std::uint64_t>(bytes.size() - length_bytes, max_safetensors_header);
  if (length > available) {
    throw InputError(path.string(), "header", fmt::format("a length of at most {} bytes", available),
                     fmt::format("{}", length));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + length_bytes;
  const std::span<const std::byte> data = bytes.subspan(length_bytes + length);
  SafetensorsHeader header = parse_safetensors_header({text, static_cast<std::size_t>(length)}, data.size(), path);
  metadata_ = std::move(header.metadata);
  for (auto& [name, entry] : header.tensors) {
    std::span<const std::byte> content = data.subspan(entry.begin, entry.end - entry.begin);
    if (reinterpret_cast<std::uintptr_t>(content.data()) % stored_type_size(entry.type) != 0 && !content.empty()) {
      auto& copy = realigned_.emplace_back(std::make_unique<std::byte[]>(content.size()));
      std::memcpy(copy.get(), content.data(), content.size());
      content = {copy.get(), content.size()};
    }
    tensors_.emplace(name, StoredTensor{entry.type, std::move(entry.shape), content});
  }
}

const StoredTensor& SafetensorsFile::at(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw InputError(path_.string(), fmt::format("tensor {}", name), "it to be there", "none");
  }
  return found->second;
}

template <class T>
std::span<const T> SafetensorsFile::read(std::string_view name, std::span<const std::int64_t> shape) const {
  const StoredTensor& tensor = at(name);
  constexpr StoredType type = stored_type_of<T>;
  const bool shape_fits = shape.empty() || std::ranges::equal(shape, tensor.shape);
  if (tensor.type != type || !shape_fits) {
    throw InputError(path_.string(), fmt::format("tensor {}", name),
                     fmt::format("{} {}", stored_type_name(type), shape.empty() ? "of any shape" : shape_text(shape)),
                     fmt::format("{} {}", stored_type_name(tensor.type), shape_text(tensor.shape)));
  }
  return {reinterpret_cast<const T*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(T)};
}

template <class T>
TensorToWrite tensor_to_write(std::string name, std::span<const T> values, std::vector<std::int64_t> shape) {
  if (shape.empty()) shape = {static_cast<std::int64_t>(values.size())};
  return {std::move(name), stored_type_of<T>, std::move(shape), std::as_bytes(values)};
}

std::string write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  const std::string header = header_text(tensors, metadata);
  AtomicFile file(path);
  Sha256 digest;
  // In pieces that stay in the cache between hashing and writing.
  const auto put = [&](std::span<const std::byte> bytes) {
    constexpr std::size_t piece = std::size_t{1} << 18;
    for (std::size_t begin = 0; begin < bytes.size(); begin += piece) {
      const auto part = bytes.subspan(begin, std::min(piece, bytes.size() - begin));
      digest.update(part);
      file.write(part);
    }
  };
  std::array<std::byte, length_bytes> length;
  for (std::size_t i = 0; i < length_bytes; ++i) length[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xFF);
  put(length);
  put(std::as_bytes(std::span(header)));
  for (const TensorToWrite& tensor : tensors) put(tensor.bytes);
  file.commit();
  return digest.finish();
}

#define FEDPDPO_INSTANTIATE(T)                                                                                 \
  template std::span<const T> SafetensorsFile::read<T>(std::string_view, std::span<const std::int64_t>) const; \
  template TensorToWrite tensor_to_write<T>(std::string, std::span<const T>, std::vector<std::int64_t>);
FEDPDPO_INSTANTIATE(float)
FEDPDPO_INSTANTIATE(double)
FEDPDPO_INSTANTIATE(std::int64_t)
FEDPDPO_INSTANTIATE(std::int32_t)
FEDPDPO_INSTANTIATE(std::uint64_t)
FEDPDPO_INSTANTIATE(std::uint32_t)
FEDPDPO_INSTANTIATE(std::uint8_t)
#undef FEDPDPO_INSTANTIATE

}  // namespace fedpdpo
