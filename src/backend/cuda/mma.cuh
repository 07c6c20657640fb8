// The device's instructions that C++ has no words for (PTX ISA: mma.m16n8k16, ldmatrix, cp.async, cvt, ex2) and a
// block's dynamic shared memory. tests/cuda_emulation/cuda/mma.cuh has the same functions for the emulated device.
//
// Fragments, with g = lane / 4 and t = lane % 4, two bf16 a register, the lower half first: A (16, 16) rows g, g + 8,
// g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8; B (16, 8) rows 2t and 2t + 8 of column g; C (16, 8) rows g, g, g + 8, g +
// 8 at columns 2t, 2t + 1, 2t, 2t + 1.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedpdpo::cuda {

/// The dynamic shared memory that the launch asked for, 128-byte aligned.
inline __device__ unsigned char* block_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_block_memory[];
  return dynamic_block_memory;
}

/// One wide access to memory of narrower elements; the address is a multiple of T's alignment.
template <class T>
__device__ T load_as(const void* from) {
  return *static_cast<const T*>(from);
}
template <class T>
__device__ void store_as(void* to, const T& value) {
  *static_cast<T*>(to) = value;
}

/// c += a b, with fp32 sums.
inline __device__ void mma_m16n8k16_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

inline __device__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// Four 8 x 8 matrices of 16-bit elements; lane 8 m + r points to the 16 bytes of row r of matrix m. Register m gets
/// row g of matrix m at columns 2t and 2t + 1.
inline __device__ void ldmatrix_x4(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
/// The same of the transposed matrices: rows 2t and 2t + 1 of column g.
inline __device__ void ldmatrix_x4_trans(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

/// Begins to copy 16 bytes from global to shared memory, both 16-byte aligned; zeros where not `valid` (`from` is an
/// address then, but nothing is read).
inline __device__ void cp_async_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
inline __device__ void cp_async_4(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
               : "memory");
}
/// Waits for the copies that this thread has begun; the others' need a barrier besides.
inline __device__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Both rounded to the nearest bf16, `low` in the lower half.
inline __device__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// 2^x to 2 ulp, 0 for -inf.
inline __device__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fedpdpo::cuda
