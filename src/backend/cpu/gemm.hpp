// Matrix products of the CPU backend: own kernels for fp32, oneDNN for bf16 weights. The choice depends on (N, K) only,
// never on the number of rows, and neither does the order of a sum, so that a row has the same bits in any batch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/scratch.hpp"
#include "cpu/tile_gemm.hpp"

namespace fedpdpo::cpu {

class Gemm {
 public:
  explicit Gemm(int num_threads);
  ~Gemm();

  /// C (M, N) (+)= alpha A (M, K) op(B): B (K, N), or (N, K) where transposed; rows `*_stride` apart.
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t a_stride,
                const float* b, std::int64_t b_stride, bool transpose_b, bool accumulate, float* c,
                std::int64_t c_stride);
  /// C (M, N) (+)= alpha A^T B with A (K, M), B (K, N).
  void multiply_outer(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
                      std::int64_t a_stride, const float* b, std::int64_t b_stride, bool accumulate, float* c,
                      std::int64_t c_stride);
  /// The same with a bf16 B and alpha = 1; A is rounded to bf16 where the processor multiplies it, otherwise B is
  /// widened.
  void multiply_bf16(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_stride,
                     const std::uint16_t* b, std::int64_t b_stride, bool transpose_b, bool accumulate, float* c,
                     std::int64_t c_stride);

 private:
  struct Primitives;

  void tiles(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, StridedMatrix a, const float* b,
             std::int64_t b_stride, bool transpose_b, bool accumulate, float* c, std::int64_t c_stride);

  int num_threads_;
  bool native_bf16_;
  std::vector<Scratch<float>> panels_;  // by thread
  Scratch<float> wide_;
  Scratch<std::uint16_t> activations_;
  std::unique_ptr<Primitives> primitives_;
};

}  // namespace fedpdpo::cpu
