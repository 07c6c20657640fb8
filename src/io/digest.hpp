// SHA-256 of bytes that come in pieces, by OpenSSL, which uses the processor's instructions where it can: its plain
// functions, because the EVP interface brings the whole library (4 MB) along.
#pragma once

#include <openssl/sha.h>

#include <cstddef>
#include <span>
#include <string>

namespace fedpdpo {

class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  /// Lower-case hex of everything so far; the last call.
  std::string finish();

 private:
  SHA256_CTX context_;
};

}  // namespace fedpdpo
