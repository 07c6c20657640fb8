// Own fp32 products, row by row reproducible: see tile_gemm-inl.hpp.
#pragma once

#include <cstdint>

namespace fedpdpo::cpu {

/// Element (i, k) is data[i * row_stride + k * col_stride].
struct StridedMatrix {
  const float* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;
};

/// Floats of scratch for `tile_gemm`: a packed panel of B.
inline constexpr std::int64_t kPanelDepth = 640, kPanelFloats = kPanelDepth * 48;

enum class BOrder : std::uint8_t {
  by_depth,   ///< B (depth, cols), a row for each k
  by_column,  ///< B^T (cols, depth), a row for each column of C
};

/// C (rows, cols) (+)= alpha A (rows, depth) B (depth, cols). Single-threaded. An element of C is a chain of fused
/// multiply-adds over each run of at most kPanelDepth ks, the runs added in order: its bits depend on its row of A, its
/// column of B and the depth only.
void tile_gemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, StridedMatrix a, const float* b,
               std::int64_t b_stride, BOrder order, bool accumulate, float* c, std::int64_t c_stride, float* panel);

/// C (rows, cols) (+)= alpha A B^T for few columns (cols <= 16): rows of A and of B (cols, depth) are contiguous in k.
void dot_gemm(std::int64_t rows, std::int64_t cols, std::int64_t depth, float alpha, const float* a,
              std::int64_t a_stride, const float* b, std::int64_t b_stride, bool accumulate, float* c,
              std::int64_t c_stride);

}  // namespace fedpdpo::cpu
