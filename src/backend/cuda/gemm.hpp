// Large matrix products by cuBLASLt: C (m, n) (+)= alpha op(A) op(B), row-major with strides, which cuBLAS sees as the
// transposed product of column-major matrices. An algorithm is chosen once for a shape of parameters, never by the
// number of rows in the batch and without a split of sums, so that a row goes the same way in any batch and new batches
// ask for nothing. Where that algorithm refuses a number of rows, one is chosen for this number; where cuBLASLt has
// none at all (odd strides of 16-bit numbers), the own kernel of products.hpp takes it.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <memory>

#include "cuda/device.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

/// A stored matrix: rows `stride` apart, used as it lies or transposed. f32 or bf16.
struct Operand {
  const void* data = nullptr;
  std::int64_t stride = 0;
  bool transposed = false;
};

/// The dimension that counts rows of the batch.
enum class BatchDimension : std::uint8_t { m, k };

/// What fp32 factors are rounded to before they are multiplied; sums are fp32.
enum class Rounding : std::uint8_t { none, tf32 };

struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0;
  float alpha = 1;
  Write mode = Write::overwrite;
  DType type = DType::f32;    ///< of A and B
  DType c_type = DType::f32;  ///< f32, or bf16 where A and B are
  Rounding rounding = Rounding::none;
  BatchDimension batch = BatchDimension::m;
};

class Gemm {
 public:
  explicit Gemm(std::shared_ptr<Device> device);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  void multiply(const char* operation, const GemmShape& shape, const Operand& a, const Operand& b, void* c,
                std::int64_t c_stride);

 private:
  struct Key;
  struct Plan;
  struct Plans;
  Plan& plan_for(const Key& key);
  void make_plan(const Key& key, Plan& plan);
  cublasStatus_t multiply_by_cublas(Key key, const GemmShape& shape, const void* a, const void* b, void* c);
  cublasStatus_t launch(Plan& plan, const GemmShape& shape, const void* a, const void* b, void* c);
  void multiply_by_own_kernel(const char* operation, const GemmShape& shape, const Operand& a, const Operand& b,
                              void* c, std::int64_t c_stride);

  std::shared_ptr<Device> device_;
  Scratch<std::byte> workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::unique_ptr<Plans> plans_;
  std::int64_t typical_rows_;
  bool rows_matter_ = false, own_kernel_used_ = false;  // has been said
};

}  // namespace fedpdpo::cuda
