// Own small products, dispatched at run time to the processor's vector width.
#include "cpu/tile_gemm.hpp"

#include <cmath>

#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/tile_gemm.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/tile_gemm-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

// panel (depth, kPanelWidth) = the columns of B, transposed, zero up to full vectors.
HWY_INLINE void pack_columns(const float* b, std::int64_t b_stride, std::int64_t width, std::int64_t depth,
                             float* panel) {
  constexpr std::int64_t kPanelWidth = kTileVecs * kLanes;
  std::int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const hn::RepartitionToWide<decltype(d)> wide;
  for (; j + 4 <= width; j += 4) {
    const float* from = b + j * b_stride;
    float* to = panel + j;
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
      const auto r0 = hn::LoadU(d, from + k), r1 = hn::LoadU(d, from + b_stride + k);
      const auto r2 = hn::LoadU(d, from + 2 * b_stride + k), r3 = hn::LoadU(d, from + 3 * b_stride + k);
      const auto low01 = hn::BitCast(wide, hn::InterleaveLower(d, r0, r1));
      const auto low23 = hn::BitCast(wide, hn::InterleaveLower(d, r2, r3));
      const auto high01 = hn::BitCast(wide, hn::InterleaveUpper(d, r0, r1));
      const auto high23 = hn::BitCast(wide, hn::InterleaveUpper(d, r2, r3));
      float* row = to + k * kPanelWidth;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, low01, low23)), d, row);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, low01, low23)), d, row + kPanelWidth);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(wide, high01, high23)), d, row + 2 * kPanelWidth);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(wide, high01, high23)), d, row + 3 * kPanelWidth);
    }
    for (; k < depth; ++k) {
      for (std::int64_t i = 0; i < 4; ++i) to[k * kPanelWidth + i] = from[i * b_stride + k];
    }
  }
#endif
  for (; j < width; ++j) {
    for (std::int64_t k = 0; k < depth; ++k) panel[k * kPanelWidth + j] = b[j * b_stride + k];
  }
  for (; j % kLanes != 0; ++j) {
    for (std::int64_t k = 0; k < depth; ++k) panel[k * kPanelWidth + j] = 0;
  }
}

HWY_INLINE void pack_depth(const float* b, std::int64_t b_stride, std::int64_t width, std::int64_t depth,
                           float* panel) {
  for (std::int64_t k = 0; k < depth; ++k) {
    for_columns(width, [&](auto io, std::int64_t c) HWY_ATTR {
      hn::StoreU(io.load(b + k * b_stride + c), Floats(), panel + k * kTileVecs * kLanes + c);
    });
  }
}

void TileGemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, StridedMatrix a, const float* b,
              std::int64_t b_stride, BOrder order, bool accumulate, float* c, std::int64_t c_stride, float* panel) {
  constexpr std::int64_t kPanelWidth = kTileVecs * kLanes;
  static_assert(kPanelWidth * kPanelDepth <= kPanelFloats);
  const std::int64_t runs = (depth + kPanelDepth - 1) / kPanelDepth;
  const std::int64_t run = (depth + runs - 1) / runs;
  // Rows of B far apart miss the TLB and alias in the caches; packing pays after some rows of A.
  const bool pack_far = b_stride > 1024 && rows >= 32;
  for (std::int64_t k = 0; k < depth; k += run) {
    const std::int64_t ks = HWY_MIN(run, depth - k);
    const StridedMatrix a_run{a.data + k * a.col_stride, a.row_stride, a.col_stride};
    const bool add = accumulate || k > 0;
    for (std::int64_t n = 0; n < cols; n += kPanelWidth) {
      const std::int64_t width = HWY_MIN(kPanelWidth, cols - n);
      if (order == BOrder::by_column) {
        pack_columns(b + n * b_stride + k, b_stride, width, ks, panel);
      } else if (pack_far) {
        pack_depth(b + k * b_stride + n, b_stride, width, ks, panel);
      } else {
        tile_product<BPadding::exact>(rows, width, ks, alpha, a_run, b + k * b_stride + n, b_stride, add, c + n,
                                      c_stride);
        continue;
      }
      tile_product<BPadding::full_vectors>(rows, width, ks, alpha, a_run, panel, kPanelWidth, add, c + n, c_stride);
    }
  }
}

// Vectors along k, one sum of lanes for each element of C at the end.
template <int kRows, int kCols>
HWY_INLINE void dot_tile(std::int64_t depth, float alpha, const float* a, std::int64_t a_stride, const float* b,
                         std::int64_t b_stride, bool accumulate, float* c, std::int64_t c_stride) {
  Vec acc[kRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) acc[i][j] = hn::Zero(Floats());
  }
  const auto step = [&](auto io, std::int64_t k) HWY_ATTR {
    Vec a_vec[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) a_vec[i] = io.load(a + i * a_stride + k);
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      const Vec b_vec = io.load(b + j * b_stride + k);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) acc[i][j] = hn::MulAdd(a_vec[i], b_vec, acc[i][j]);
    }
  };
  for_columns(depth, step);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      const float sum = hn::GetLane(hn::SumOfLanes(Floats(), acc[i][j]));
      float& out = c[i * c_stride + j];
      // An explicit fma: left to the compiler, contraction could differ between the row remainders.
      out = accumulate ? std::fma(alpha, sum, out) : alpha * sum;
    }
  }
}

template <int kCols>
HWY_INLINE void dot_panel(std::int64_t rows, std::int64_t depth, float alpha, const float* a, std::int64_t a_stride,
                          const float* b, std::int64_t b_stride, bool accumulate, float* c, std::int64_t c_stride) {
  constexpr int kRows = HWY_TARGET == HWY_AVX3 ? (kCols >= 8 ? 3 : 4) : 2;
  std::int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    dot_tile<kRows, kCols>(depth, alpha, a + i * a_stride, a_stride, b, b_stride, accumulate, c + i * c_stride,
                           c_stride);
  }
  for (; i < rows; ++i) {
    dot_tile<1, kCols>(depth, alpha, a + i * a_stride, a_stride, b, b_stride, accumulate, c + i * c_stride, c_stride);
  }
}

void DotGemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, const float* a,
             std::int64_t a_stride, const float* b, std::int64_t b_stride, bool accumulate, float* c,
             std::int64_t c_stride) {
  std::int64_t n = 0;
  if (HWY_TARGET == HWY_AVX3) {
    for (; n + 8 <= cols; n += 8) {
      dot_panel<8>(rows, depth, alpha, a, a_stride, b + n * b_stride, b_stride, accumulate, c + n, c_stride);
    }
  }
  for (; n + 4 <= cols; n += 4) {
    dot_panel<4>(rows, depth, alpha, a, a_stride, b + n * b_stride, b_stride, accumulate, c + n, c_stride);
  }
  for (; n < cols; ++n) {
    dot_panel<1>(rows, depth, alpha, a, a_stride, b + n * b_stride, b_stride, accumulate, c + n, c_stride);
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(TileGemm);
HWY_EXPORT(DotGemm);

void tile_gemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, StridedMatrix a, const float* b,
               std::int64_t b_stride, BOrder order, bool accumulate, float* c, std::int64_t c_stride, float* panel) {
  HWY_DYNAMIC_DISPATCH(TileGemm)(rows, cols, depth, alpha, a, b, b_stride, order, accumulate, c, c_stride, panel);
}

void dot_gemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, const float* a,
              std::int64_t a_stride, const float* b, std::int64_t b_stride, bool accumulate, float* c,
              std::int64_t c_stride) {
  HWY_DYNAMIC_DISPATCH(DotGemm)(rows, cols, depth, alpha, a, a_stride, b, b_stride, accumulate, c, c_stride);
}

}  // namespace fedpdpo::cpu
#endif
