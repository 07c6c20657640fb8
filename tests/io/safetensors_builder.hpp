// Hand-made safetensors files: any header text, any data.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo::test {

inline std::string length_prefix(std::uint64_t length) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i) & 0xFF);
  return bytes;
}

inline std::string safetensors(std::string_view header, std::string_view data) {
  return length_prefix(header.size()) + std::string(header) + std::string(data);
}

/// Reads every byte that the file claims to hold and checks that its parts agree; what a mutated file that was
/// accepted must survive.
inline std::uint64_t touch_everything(const SafetensorsFile& file) {
  std::uint64_t sum = 0;
  for (const auto& [name, tensor] : file.tensors()) {
    std::uint64_t elements = 1;
    for (const std::int64_t extent : tensor.shape) elements *= static_cast<std::uint64_t>(extent);
    if (elements * stored_type_size(tensor.type) != tensor.bytes.size() ||
        static_cast<std::uint64_t>(tensor.num_elements()) != elements ||
        (!tensor.bytes.empty() &&
         reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % stored_type_size(tensor.type))) {
      throw std::logic_error("inconsistent tensor " + name);
    }
    for (const std::byte byte : tensor.bytes) sum += std::to_integer<std::uint64_t>(byte);
    sum += name.size();
  }
  for (const auto& [key, value] : file.metadata()) sum += key.size() + value.size();
  return sum;
}

}  // namespace fedpdpo::test
