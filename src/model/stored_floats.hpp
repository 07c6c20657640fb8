// Numbers of weight files: F32, BF16 and F16 to float and back (to the nearest, ties to even).
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo {

inline std::uint16_t to_bf16(float value) {
  auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_f16(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

/// Beyond the largest half it is infinity.
inline std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // below the least normal half: in units of 2^-24
    const float units = std::ldexp(std::bit_cast<float>(magnitude), 24);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(units)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// True for the types that weights may have.
inline bool is_weight_type(StoredType type) {
  return type == StoredType::f32 || type == StoredType::bf16 || type == StoredType::f16;
}

/// Element `i` of a stored floating tensor.
struct StoredFloats {
  const std::byte* data;
  StoredType type;

  float operator[](std::size_t i) const {
    if (type == StoredType::f32) {
      float value;
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    std::uint16_t half;
    std::memcpy(&half, data + 2 * i, 2);
    return type == StoredType::bf16 ? std::bit_cast<float>(std::uint32_t{half} << 16) : from_f16(half);
  }
};

/// Puts a number at element `i` of a tensor of that type.
inline void store_float(std::byte* data, StoredType type, std::size_t i, float value) {
  if (type == StoredType::f32) {
    std::memcpy(data + 4 * i, &value, 4);
    return;
  }
  const std::uint16_t half = type == StoredType::bf16 ? to_bf16(value) : to_f16(value);
  std::memcpy(data + 2 * i, &half, 2);
}

}  // namespace fedpdpo
