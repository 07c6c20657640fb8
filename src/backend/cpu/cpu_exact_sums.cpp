// Exact sums by blocks: the loops are core/fixed_point.hpp's.
#include "cpu/cpu_backend.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cpu {
namespace {

/// body(block, first, length) for every block.
template <class Body>
void over_blocks(ConstView offsets, std::int64_t size, Body body) {
  const std::int32_t* const offset = offsets.i32();
  check(offset[0] == 0 && offset[offsets.cols - 1] == size, "block offsets begin with 0 and end with the length");
  for (std::int64_t block = 0; block + 1 < offsets.cols; ++block) {
    check(offset[block] <= offset[block + 1], "block offsets rise");
    body(block, static_cast<std::size_t>(offset[block]), static_cast<std::size_t>(offset[block + 1] - offset[block]));
  }
}

}  // namespace

void CpuBackend::do_block_peaks(ConstView values, ConstView offsets, View peaks) {
  over_blocks(offsets, values.cols, [&](std::int64_t block, std::size_t first, std::size_t length) {
    peaks.f32()[block] = largest_magnitude({values.f32() + first, length});
  });
}

void CpuBackend::do_add_terms(ConstView values, double weight, ConstView offsets, ConstView exponents,
                              TermCoding coding, View sums) {
  over_blocks(offsets, values.cols, [&](std::int64_t block, std::size_t first, std::size_t length) {
    fedpdpo::add_terms({values.f32() + first, length}, weight, exponents.i32()[block], coding, sums.i64() + first);
  });
}

void CpuBackend::do_round_sums(ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y) {
  over_blocks(offsets, sums.cols, [&](std::int64_t block, std::size_t first, std::size_t length) {
    fedpdpo::round_sums({sums.i64() + first, length}, exponents.i32()[block], coding, y.f32() + first);
  });
}

}  // namespace fedpdpo::cpu
