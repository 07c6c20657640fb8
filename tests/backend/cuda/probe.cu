// The kernels of probe.hpp.
#include "cuda/fragments.cuh"
#include "cuda/launch.hpp"
#include "probe.hpp"

namespace fedpdpo::cuda {
namespace {

__global__ void product_kernel(const std::uint32_t* a, const std::uint32_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  const std::uint32_t left[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[4 * lane + i];
  mma_m16n8k16_bf16(sum, left, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sum[i];
}

constexpr int kStride = 24;  // elements from row to row in shared memory

__global__ void matrices_kernel(const std::uint16_t* rows, int absent, bool transposed, std::uint32_t* registers) {
  const int lane = static_cast<int>(threadIdx.x);
  auto* const memory = reinterpret_cast<std::uint16_t*>(block_memory());
  std::uint16_t* const row = memory + lane * kStride;
  for (int i = 0; i < 8; ++i) row[i] = 0x7fc0;
  cp_async_16(row, rows + 8 * lane, lane != absent);
  cp_async_wait_all();
  __syncthreads();
  std::uint32_t found[4];
  if (transposed) {
    ldmatrix_x4_trans(found, row);
  } else {
    ldmatrix_x4(found, row);
  }
  for (int i = 0; i < 4; ++i) registers[4 * lane + i] = found[i];
}

__global__ void copies_kernel(const float* from, int absent, float* to) {
  const int lane = static_cast<int>(threadIdx.x), other = kWarp - 1 - lane;
  auto* const memory = reinterpret_cast<float*>(block_memory());
  memory[lane] = __uint_as_float(0x7fc00000u);
  cp_async_4(memory + lane, from + lane, lane != absent);
  cp_async_wait_all();
  __syncthreads();
  to[other] = memory[other];  // what another lane has copied
}

__global__ void numbers_kernel(int pairs, const float* x, std::uint32_t* packed, std::uint32_t* rounded,
                               float* powers) {
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kWarp) {
    const float first = x[2 * i], second = x[2 * i + 1];
    packed[i] = pack_bf16(first, second);
    rounded[i] = rounded_to_bf16(first) | static_cast<std::uint32_t>(rounded_to_bf16(second)) << 16;
    powers[2 * i] = exp2_approximate(first);
    powers[2 * i + 1] = exp2_approximate(second);
  }
}

__global__ void reductions_kernel(const float* x, float* results) {
  const float own = x[threadIdx.x];
  results[2 * threadIdx.x] = warp_sum(own);
  results[2 * threadIdx.x + 1] = warp_reduce(own, Largest());
}

template <class... Params, class... Args>
void run(void* stream, void (*kernel)(Params...), Args... args) {
  launch_with_memory(static_cast<cudaStream_t>(stream), "probe", dim3(1), dim3(kWarp), kWarp * kStride * 2, kernel,
                     args...);
}

}  // namespace

void probe_product(void* stream, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  run(stream, product_kernel, a, b, c);
}
void probe_matrices(void* stream, const std::uint16_t* rows, int absent, bool transposed, std::uint32_t* registers) {
  run(stream, matrices_kernel, rows, absent, transposed, registers);
}
void probe_copies(void* stream, const float* from, int absent, float* to) {
  run(stream, copies_kernel, from, absent, to);
}
void probe_numbers(void* stream, int pairs, const float* x, std::uint32_t* packed, std::uint32_t* rounded,
                   float* powers) {
  run(stream, numbers_kernel, pairs, x, packed, rounded, powers);
}
void probe_reductions(void* stream, const float* x, float* results) { run(stream, reductions_kernel, x, results); }

}  // namespace fedpdpo::cuda
