// Compressed client updates with error feedback: what compression leaves out of a round is added to the next.
//   u = (y - x) + memory,  y <- x + Q(u),  memory <- u - Q(u)
// Seide et al., "1-bit SGD", 2014; Karimireddy et al., "Error feedback fixes SignSGD", 2019, arXiv 1901.09847. int8:
// QSGD (Alistarh et al. 2017) without its random rounding. Top-k: Stich et al. 2018, arXiv 1809.07599.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fedpdpo {

/// How an update travels.
enum class Compression : std::uint8_t {
  none,  ///< as it is, fp32
  int8,  ///< a whole number of -127 ... 127 a value and an fp32 scale a parameter tensor
  topk,  ///< only the values of largest magnitude, each an fp32 and a 32-bit index
};

/// What the user asks for.
struct CompressionOptions {
  Compression kind = Compression::none;
  double topk_share = 0.01;    ///< share of the values that top-k sends, in (0, 1]
  bool error_feedback = true;  ///< false: what is left out is lost
};

/// What compression did to one update.
struct Compressed {
  std::size_t bytes = 0;  ///< sent, without headers
  double error = 0;       ///< ||u - Q(u)|| / ||u||; 0 for u = 0
  bool finite = true;     ///< false: u is not finite, values and memory are as they were; the client is to be left out
};

/// The number of values that top-k sends of `size`: share * size rounded up, at least 1 (0 of none).
std::size_t topk_count(double share, std::size_t size);

/// Compresses one client's update. `base` is x, `values` y, `memory` the client's own from round to round, zero at
/// first: all of the shared span's size, memory possibly empty and never touched without error feedback. `blocks` are
/// the offsets of the parameter tensors: ascending, the first 0, the last the size. u and memory are rounded to fp32.
///   none: values and memory stay; 4 bytes a value.
///   int8: a block's scale is s = max|u| / 127, rounded up, and Q(u) = s round(u / s), ties to even: |u - Q(u)| is at
///         most s / 2. Bytes: size + 4 a block.
///   topk: the topk_count entries of largest magnitude of the whole span, ties to the lower index, found in O(size).
///         Bytes: 8 an entry.
Compressed compress_update(const CompressionOptions& options, std::span<const std::size_t> blocks,
                           std::span<const float> base, std::span<float> values, std::span<float> memory);

}  // namespace fedpdpo
