// The quantisers, and the error feedback around them.
//   int8: Q(u) = s round(u / s), s = max|u| / 127 a block;   top-k: Q(u) = u where |u| is among the k largest, else 0
#include "fedpdpo/fed/compression.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/finite.hpp"

namespace fedpdpo {
namespace {

constexpr double most_int8 = 127;

/// Q(u) of one block, in double, where a scale times a whole number is exact.
void quantise_block(std::span<const float> u, std::span<double> sent) {
  float largest = 0;
  for (float x : u) largest = std::max(largest, std::abs(x));
  auto scale = static_cast<float>(largest / most_int8);
  // Rounded up, so that the largest value stays within 127 also where the scale is subnormal.
  if (most_int8 * scale < largest) scale = std::nextafter(scale, std::numeric_limits<float>::infinity());
  for (std::size_t i = 0; i < u.size(); ++i)
    sent[i] = scale == 0 ? 0 : static_cast<double>(scale) * std::nearbyint(static_cast<double>(u[i]) / scale);
}

void keep_largest(std::span<const float> u, std::size_t count, std::span<double> sent) {
  if (count == 0) return;
  std::vector<float> magnitudes(u.size());
  for (std::size_t i = 0; i < u.size(); ++i) magnitudes[i] = std::abs(u[i]);
  const auto last_kept = magnitudes.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(magnitudes.begin(), last_kept, magnitudes.end(), std::greater<>());
  const float threshold = *last_kept;
  const auto above = std::count_if(magnitudes.begin(), last_kept, [&](float x) { return x > threshold; });
  std::size_t ties = count - static_cast<std::size_t>(above);
  for (std::size_t i = 0; i < u.size(); ++i) {
    const float magnitude = std::abs(u[i]);
    const bool is_tie = magnitude == threshold && ties > 0;
    if (is_tie) --ties;
    sent[i] = magnitude > threshold || is_tie ? u[i] : 0;
  }
}

}  // namespace

std::size_t topk_count(double share, std::size_t size) {
  check(share > 0 && share <= 1, "topk_count: the share is not in (0, 1]");
  if (size == 0) return 0;
  // The product of 0.07 and 100 is a little above 7: no value more for that.
  const double wanted = std::ceil(share * static_cast<double>(size) * (1 - 1e-12));
  return std::clamp<std::size_t>(static_cast<std::size_t>(wanted), 1, size);
}

Compressed compress_update(const CompressionOptions& options, std::span<const std::size_t> blocks,
                           std::span<const float> base, std::span<float> values, std::span<float> memory) {
  const std::size_t size = values.size();
  check(base.size() == size, "compress_update: base and values differ in size");
  check(!blocks.empty() && blocks.front() == 0 && blocks.back() == size && std::is_sorted(blocks.begin(), blocks.end()),
        "compress_update: the blocks are not ascending offsets from 0 to the size");
  check(memory.size() == size || (memory.empty() && !options.error_feedback),
        "compress_update: memory and values differ in size");
  check(size <= std::size_t{1} << 32, "compress_update: indices have 32 bits");
  if (options.kind == Compression::none) return {4 * size, 0, all_finite(values)};

  const bool is_topk = options.kind == Compression::topk;
  const std::size_t count = is_topk ? topk_count(options.topk_share, size) : size;
  Compressed result{is_topk ? 8 * count : size + 4 * (blocks.size() - 1), 0, true};
  std::vector<float> u(size);
  for (std::size_t i = 0; i < size; ++i) {
    const double remembered = options.error_feedback ? memory[i] : 0;
    u[i] = static_cast<float>(static_cast<double>(values[i]) - base[i] + remembered);
  }
  result.finite = all_finite(u);
  if (!result.finite) return result;

  std::vector<double> sent(size);
  if (is_topk) {
    keep_largest(u, count, sent);
  } else {
    for (std::size_t b = 0; b + 1 < blocks.size(); ++b) {
      const std::size_t length = blocks[b + 1] - blocks[b];
      quantise_block(std::span(u).subspan(blocks[b], length), std::span(sent).subspan(blocks[b], length));
    }
  }
  double lost = 0, whole = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const double left = u[i] - sent[i];
    lost += left * left;
    whole += static_cast<double>(u[i]) * u[i];
    values[i] = static_cast<float>(base[i] + sent[i]);
    if (options.error_feedback) memory[i] = static_cast<float>(left);
  }
  if (whole > 0) result.error = std::sqrt(lost / whole);
  return result;
}

}  // namespace fedpdpo
