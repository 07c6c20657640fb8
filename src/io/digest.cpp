// SHA-256 and its hexadecimal form.
#include "digest.hpp"

#include <array>
#include <string_view>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

Sha256::Sha256() { check(SHA256_Init(&context_) == 1, "OpenSSL has no SHA-256"); }

void Sha256::update(std::span<const std::byte> bytes) {
  check(SHA256_Update(&context_, bytes.data(), bytes.size()) == 1, "SHA-256 failed");
}

std::string Sha256::finish() {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  check(SHA256_Final(digest.data(), &context_) == 1, "SHA-256 failed");
  constexpr std::string_view digits = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * digest.size());
  for (const unsigned char byte : digest) {
    hex += digits[byte >> 4];
    hex += digits[byte & 15];
  }
  return hex;
}

}  // namespace fedpdpo
