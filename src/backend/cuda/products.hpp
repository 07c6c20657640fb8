// Own fp32 matrix products for what cuBLASLt is not made for: many small ones at once, one a cohort member.
//   C (m, n) (+)= alpha A (m, depth) B (depth, n), every element a sum over the depth in an order of its own row and
//   column alone, so that a row has the same bits in any batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

/// One of the products of a launch.
struct ProductTask {
  const void* a;
  const void* b;
  void* c;
  std::int32_t m, depth;
};

/// What the products of a launch share. Element (i, k) of A is a[i * a_row + k * a_col]; of B (k, j)
/// b[k * b_row + j * b_col]; of C c[i * c_row + j]. Each is f32 or bf16; sums are fp32.
struct ProductShape {
  std::int64_t n;
  std::int64_t a_row, a_col, b_row, b_col, c_row;
  float alpha;
  Write mode;
  DType a_type = DType::f32, b_type = DType::f32, c_type = DType::f32;
  /// True for few columns and long sums over rows of A that lie in one piece (a_col = 1): another kernel, same
  /// contract.
  bool by_rows = false;
};

/// `by_rows` for a product of these sizes: a choice by the shape of the parameters, never by the batch.
constexpr bool few_columns(std::int64_t n, std::int64_t depth) { return n <= 64 && depth >= 128; }

/// Tasks with m = 0 write nothing; a depth of 0 is a sum over nothing.
void products(cudaStream_t stream, const char* operation, std::span<const ProductTask> tasks,
              const ProductShape& shape);

}  // namespace fedpdpo::cuda
