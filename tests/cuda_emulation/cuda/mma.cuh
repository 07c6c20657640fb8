// The emulated device's counterpart of src/backend/cuda/mma.cuh, found before it: the same functions by the layouts
// that the PTX ISA documents, each carried out at once for the whole warp when its last lane has come. Asynchronous
// copies arrive when they are waited for, and until then their place holds NaN.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/launch.hpp"

namespace fedpdpo::cuda {

inline unsigned char* block_memory() { return emulation::block_memory(); }

template <class T>
T load_as(const void* from) {
  emulation::require(reinterpret_cast<std::uintptr_t>(from) % alignof(T) == 0, "a wide load from an unaligned address");
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class T>
void store_as(void* to, const T& value) {
  emulation::require(reinterpret_cast<std::uintptr_t>(to) % alignof(T) == 0, "a wide store to an unaligned address");
  std::memcpy(to, &value, sizeof value);
}

inline float lower_bf16(std::uint32_t pair) { return __uint_as_float(pair << 16); }
inline float upper_bf16(std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/// What a lane brings to a product.
struct MmaLane {
  float* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

inline void multiply_fragments(void* const* lanes, unsigned count) {
  emulation::require(count == 32, "a matrix product by a part of a warp");
  emulation::count_fragments();
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
      a[row][column] = lower_bf16(own.a[i]);
      a[row][column + 1] = upper_bf16(own.a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + i * 8][g] = lower_bf16(own.b[i]);
      b[2 * t + i * 8 + 1][g] = upper_bf16(own.b[i]);
    }
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][2 * t + i % 2] = own.c[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaLane*>(lanes[lane])->c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

inline void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  MmaLane own{c, a, {b0, b1}};
  emulation::with_warp(multiply_fragments, &own);
}

struct MatrixLane {
  std::uint32_t* to;
  const void* row;
};

template <bool kTransposed>
void load_matrices(void* const* lanes, unsigned count) {
  emulation::require(count == 32, "a matrix load by a part of a warp");
  for (int m = 0; m < 4; ++m) {
    std::uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      const void* row = static_cast<const MatrixLane*>(lanes[8 * m + r])->row;
      emulation::require_in_block_memory(row, 16);
      std::memcpy(matrix[r], row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4 * 2;
      const std::uint32_t low = kTransposed ? matrix[t][g] : matrix[g][t];
      const std::uint32_t high = kTransposed ? matrix[t + 1][g] : matrix[g][t + 1];
      static_cast<MatrixLane*>(lanes[lane])->to[m] = low | high << 16;
    }
  }
}

inline void ldmatrix_x4(std::uint32_t (&to)[4], const void* row) {
  emulation::reads(row, 16);
  MatrixLane own{to, row};
  emulation::with_warp(load_matrices<false>, &own);
}
inline void ldmatrix_x4_trans(std::uint32_t (&to)[4], const void* row) {
  emulation::reads(row, 16);
  MatrixLane own{to, row};
  emulation::with_warp(load_matrices<true>, &own);
}

inline void cp_async_16(void* to, const void* from, bool valid) { emulation::copy_later(to, from, 16, valid); }
inline void cp_async_4(void* to, const void* from, bool valid) { emulation::copy_later(to, from, 4, valid); }
inline void cp_async_wait_all() { emulation::finish_copies(); }

inline std::uint32_t pack_bf16(float low, float high) {
  return rounded_to_bf16(low) | static_cast<std::uint32_t>(rounded_to_bf16(high)) << 16;
}
inline float exp2_approximate(float x) { return std::exp2(x); }

}  // namespace fedpdpo::cuda
