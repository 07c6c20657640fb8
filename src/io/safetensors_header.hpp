// The header of a safetensors file as text: parsed and checked against the size of the data that follows it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo {

/// The format's bound on the header.
inline constexpr std::uint64_t max_safetensors_header = 100'000'000;

struct HeaderTensor {
  StoredType type;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // within the data
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, HeaderTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

/// InputError, naming `file`, for anything but a header whose tensors fill exactly `data_size` bytes.
SafetensorsHeader parse_safetensors_header(std::string_view text, std::uint64_t data_size,
                                           const std::filesystem::path& file);

/// Bytes of a tensor; nullopt where the shape is negative or the product overflows.
std::optional<std::uint64_t> tensor_bytes(StoredType type, const std::vector<std::int64_t>& shape);

}  // namespace fedpdpo
