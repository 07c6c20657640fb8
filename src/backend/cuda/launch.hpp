// How kernels are launched and how they see views: grids that cover (rows, columns), one thread an element, and by
// cohort member. A launch is asynchronous; its failure names the operation.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "cuda/status.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

/// With `bytes` of dynamic shared memory a block.
template <class... Params, class... Args>
void launch_with_memory(cudaStream_t stream, const char* operation, dim3 grid, dim3 block, std::size_t bytes,
                        void (*kernel)(Params...), Args&&... args) {
  constexpr std::size_t kUnasked = std::size_t{48} << 10;
  if (bytes > kUnasked) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
               operation);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), operation);
}

template <class... Params, class... Args>
void launch(cudaStream_t stream, const char* operation, dim3 grid, dim3 block, void (*kernel)(Params...),
            Args&&... args) {
  launch_with_memory(stream, operation, grid, block, 0, kernel, std::forward<Args>(args)...);
}

inline __device__ const float* row_of(ConstView x, std::int64_t t) {
  return static_cast<const float*>(x.data) + t * x.stride;
}
inline __device__ float* row_of(View x, std::int64_t t) { return static_cast<float*>(x.data) + t * x.stride; }

/// Element `at` of f32 or bf16 memory.
inline __device__ float widened(const void* memory, DType type, std::int64_t at) {
  if (type == DType::f32) return static_cast<const float*>(memory)[at];
  return __uint_as_float(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(memory)[at]) << 16);
}
/// Element `c` of row `t` of an f32 or bf16 matrix.
inline __device__ float widened(ConstView x, std::int64_t t, std::int64_t c) {
  return widened(x.data, x.dtype, t * x.stride + c);
}

/// To the nearest bf16, ties to even; NaN stays NaN.
inline __device__ std::uint16_t rounded_to_bf16(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Writes or adds.
inline __device__ void put(float* y, float value, Write mode) { *y = mode == Write::accumulate ? *y + value : value; }

inline constexpr std::int64_t kThreads = 256;
inline constexpr std::int64_t kMaxGridY = 65535;

inline unsigned grid_size(std::int64_t count, std::int64_t per_block, std::int64_t most) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((count + per_block - 1) / per_block, 1, most));
}

/// Columns along x; blocks of few columns take several rows.
inline dim3 element_block(std::int64_t cols) {
  unsigned x = 32;
  while (x < cols && x < kThreads) x *= 2;
  return {x, static_cast<unsigned>(kThreads) / x, 1};
}

template <class Body>
__global__ void elements_kernel(std::int64_t rows, std::int64_t cols, Body body) {
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.y) * blockDim.y;
  const std::int64_t col_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; t < rows; t += row_step)
    for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < cols; c += col_step)
      body(t, c);
}

/// body(row, column) for every element, each by one thread.
template <class Body>
void over_elements(cudaStream_t stream, const char* operation, std::int64_t rows, std::int64_t cols, Body body) {
  const dim3 block = element_block(cols);
  const dim3 grid(grid_size(cols, block.x, 1 << 24), grid_size(rows, block.y, kMaxGridY), 1);
  launch(stream, operation, grid, block, elements_kernel<Body>, rows, cols, body);
}

/// Members of one launch, passed by value: nothing to upload, nothing that must outlive the call.
struct MemberTable {
  static constexpr int kMost = 128;
  int count = 0;
  MemberRows members[kMost];
};

/// visit(table, most rows of a member) for every 128 members.
template <class Visit>
void for_tables(std::span<const MemberRows> members, Visit visit) {
  for (std::size_t first = 0; first < members.size(); first += MemberTable::kMost) {
    MemberTable table;
    std::int64_t rows = 0;
    for (const MemberRows& m :
         members.subspan(first, std::min<std::size_t>(MemberTable::kMost, members.size() - first))) {
      table.members[table.count++] = m;
      rows = std::max<std::int64_t>(rows, m.end - m.begin);
    }
    visit(table, rows);
  }
}

template <class Body>
__global__ void member_elements_kernel(MemberTable table, std::int64_t cols, Body body) {
  const MemberRows member = table.members[blockIdx.z];
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.y) * blockDim.y;
  const std::int64_t col_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t t = member.begin + static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; t < member.end;
       t += row_step)
    for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < cols; c += col_step)
      body(member.slot, t, c);
}

/// body(slot, row, column) for every element of the members' rows.
template <class Body>
void over_member_elements(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                          std::int64_t cols, Body body) {
  for_tables(members, [&](const MemberTable& table, std::int64_t rows) {
    if (rows == 0) return;
    const dim3 block = element_block(cols);
    const dim3 grid(grid_size(cols, block.x, 1 << 24), grid_size(rows, block.y, kMaxGridY),
                    static_cast<unsigned>(table.count));
    launch(stream, operation, grid, block, member_elements_kernel<Body>, table, cols, body);
  });
}

}  // namespace fedpdpo::cuda
