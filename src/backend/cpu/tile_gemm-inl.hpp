// Register-blocked fp32 product C (M, N) (+)= alpha A B. A is read by (row stride, column stride) and broadcast, B is
// row-major, C is stored with masked last lanes. Each element of C is one chain of fused multiply-adds over k in order,
// whatever the blocking: a row has the same bits in any M. Compiled once per Highway target.
#include "cpu/simd.hpp"

#if defined(FEDPDPO_CPU_TILE_GEMM_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDPDPO_CPU_TILE_GEMM_INL
#undef FEDPDPO_CPU_TILE_GEMM_INL
#else
#define FEDPDPO_CPU_TILE_GEMM_INL
#endif

#include "cpu/simd-inl.hpp"
#include "cpu/tile_gemm.hpp"

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

// Accumulators that fit the register file: 8 x 3 of 32 registers, 4 x 3 of 16.
inline constexpr int kTileRows = HWY_TARGET == HWY_AVX3 ? 8 : 4;
inline constexpr int kTileVecs = 3;

enum class BPadding { full_vectors, exact };  ///< may B's rows be read up to a multiple of the vector?

template <int kRows, int kVecs, bool kMaskedB>
HWY_INLINE void tile(std::int64_t depth, float alpha, StridedMatrix a, const float* HWY_RESTRICT b,
                     std::int64_t b_stride, std::size_t last, bool accumulate, float* HWY_RESTRICT c,
                     std::int64_t c_stride) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) acc[i][j] = hn::Zero(Floats());
  }
  const float* HWY_RESTRICT a_data = a.data;
  for (std::int64_t k = 0; k < depth; ++k) {
    Vec b_row[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      b_row[j] = kMaskedB && j == kVecs - 1 ? load_first(b + j * kLanes, last) : hn::LoadU(Floats(), b + j * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec a_value = splat(a_data[i * a.row_stride]);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) acc[i][j] = hn::MulAdd(a_value, b_row[j], acc[i][j]);
    }
    a_data += a.col_stride;
    b += b_stride;
  }
  const Vec scale = splat(alpha);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    float* HWY_RESTRICT row = c + i * c_stride;
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) {
      const bool partial = j == kVecs - 1 && last != static_cast<std::size_t>(kLanes);
      float* p = row + j * kLanes;
      if (accumulate) {
        const Vec old = partial ? load_first(p, last) : hn::LoadU(Floats(), p);
        acc[i][j] = hn::MulAdd(scale, acc[i][j], old);
      } else {
        acc[i][j] = hn::Mul(scale, acc[i][j]);
      }
      if (partial) {
        store_first(acc[i][j], p, last);
      } else {
        hn::StoreU(acc[i][j], Floats(), p);
      }
    }
  }
}

template <int kVecs, bool kMaskedB>
HWY_INLINE void tile_panel(std::int64_t rows, std::int64_t depth, float alpha, StridedMatrix a, const float* b,
                           std::int64_t b_stride, std::size_t last, bool accumulate, float* c, std::int64_t c_stride) {
  std::int64_t i = 0;
  const auto at = [&](std::int64_t row) {
    return StridedMatrix{a.data + row * a.row_stride, a.row_stride, a.col_stride};
  };
  for (; i + kTileRows <= rows; i += kTileRows) {
    tile<kTileRows, kVecs, kMaskedB>(depth, alpha, at(i), b, b_stride, last, accumulate, c + i * c_stride, c_stride);
  }
  if constexpr (kTileRows > 4) {
    for (; i + 4 <= rows; i += 4) {
      tile<4, kVecs, kMaskedB>(depth, alpha, at(i), b, b_stride, last, accumulate, c + i * c_stride, c_stride);
    }
  }
  for (; i + 2 <= rows; i += 2) {
    tile<2, kVecs, kMaskedB>(depth, alpha, at(i), b, b_stride, last, accumulate, c + i * c_stride, c_stride);
  }
  for (; i < rows; ++i) {
    tile<1, kVecs, kMaskedB>(depth, alpha, at(i), b, b_stride, last, accumulate, c + i * c_stride, c_stride);
  }
}

/// C (rows, cols) (+)= alpha A (rows, depth) B (depth, cols).
template <BPadding kPadding>
HWY_NOINLINE void tile_product(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, StridedMatrix a,
                               const float* b, std::int64_t b_stride, bool accumulate, float* c,
                               std::int64_t c_stride) {
  for (std::int64_t n = 0; n < cols; n += kTileVecs * kLanes) {
    const std::int64_t width = HWY_MIN(cols - n, kTileVecs * kLanes);
    const std::int64_t vecs = (width + kLanes - 1) / kLanes;
    const auto last = static_cast<std::size_t>(width - (vecs - 1) * kLanes);
    const auto panel = [&]<int kVecs>() HWY_ATTR {
      if (kPadding == BPadding::exact && last != static_cast<std::size_t>(kLanes)) {
        tile_panel<kVecs, true>(rows, depth, alpha, a, b + n, b_stride, last, accumulate, c + n, c_stride);
      } else {
        tile_panel<kVecs, false>(rows, depth, alpha, a, b + n, b_stride, last, accumulate, c + n, c_stride);
      }
    };
    if (vecs == 1) {
      panel.template operator()<1>();
    } else if (vecs == 2) {
      panel.template operator()<2>();
    } else {
      panel.template operator()<3>();
    }
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
