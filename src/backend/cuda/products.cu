// Two kernels. Few columns and a long sum (x A^T, d_y B of LoRA): a warp a row of C, its lanes along the depth. All
// else: tiles of 64 x 64 of C, 4 x 4 a thread, the depth in steps of 16 through shared memory.
#include <algorithm>

#include "cuda/launch.hpp"
#include "cuda/products.hpp"
#include "cuda/reduce.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kMostTasks = 96;
constexpr int kTile = 64, kStep = 16, kSide = 16, kPerThread = kTile / kSide;
constexpr int kRowWarps = 8, kRowColumns = 8;

/// By value: nothing to upload.
struct TaskTable {
  ProductTask tasks[kMostTasks];
};

__device__ void finish(void* c, std::int64_t at, float sum, const ProductShape& shape) {
  const float before = shape.mode == Write::accumulate ? widened(c, shape.c_type, at) : 0.0f;
  const float value = shape.mode == Write::accumulate ? fmaf(shape.alpha, sum, before) : shape.alpha * sum;
  if (shape.c_type == DType::f32) {
    static_cast<float*>(c)[at] = value;
  } else {
    static_cast<std::uint16_t*>(c)[at] = rounded_to_bf16(value);
  }
}

__global__ void __launch_bounds__(kSide* kSide) tile_kernel(TaskTable table, ProductShape shape) {
  __shared__ float a_tile[kStep][kTile + 1];
  __shared__ float b_tile[kStep][kTile + 1];
  const ProductTask task = table.tasks[blockIdx.z];
  const std::int64_t i0 = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t j0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  if (i0 >= task.m) return;
  const int thread = static_cast<int>(threadIdx.x), tx = thread % kSide, ty = thread / kSide;
  float sums[kPerThread][kPerThread] = {};
  for (std::int64_t k0 = 0; k0 < task.depth; k0 += kStep) {
    // Neighbouring threads load along the dimension whose elements are neighbours.
    for (int at = thread; at < kTile * kStep; at += kSide * kSide) {
      const bool along_depth = shape.a_col == 1;
      const int k = along_depth ? at % kStep : at / kTile, i = along_depth ? at / kStep : at % kTile;
      a_tile[k][i] = i0 + i < task.m && k0 + k < task.depth
                         ? widened(task.a, shape.a_type, (i0 + i) * shape.a_row + (k0 + k) * shape.a_col)
                         : 0.0f;
    }
    for (int at = thread; at < kTile * kStep; at += kSide * kSide) {
      const bool along_depth = shape.b_row == 1;
      const int k = along_depth ? at % kStep : at / kTile, j = along_depth ? at / kStep : at % kTile;
      b_tile[k][j] = j0 + j < shape.n && k0 + k < task.depth
                         ? widened(task.b, shape.b_type, (k0 + k) * shape.b_row + (j0 + j) * shape.b_col)
                         : 0.0f;
    }
    __syncthreads();
    for (int k = 0; k < kStep; ++k) {
      float a[kPerThread], b[kPerThread];
      for (int r = 0; r < kPerThread; ++r) a[r] = a_tile[k][ty + r * kSide];
      for (int s = 0; s < kPerThread; ++s) b[s] = b_tile[k][tx + s * kSide];
      for (int r = 0; r < kPerThread; ++r)
        for (int s = 0; s < kPerThread; ++s) sums[r][s] = fmaf(a[r], b[s], sums[r][s]);
    }
    __syncthreads();
  }
  for (int r = 0; r < kPerThread; ++r)
    for (int s = 0; s < kPerThread; ++s) {
      const std::int64_t i = i0 + ty + r * kSide, j = j0 + tx + s * kSide;
      if (i < task.m && j < shape.n) finish(task.c, i * shape.c_row + j, sums[r][s], shape);
    }
}

__global__ void __launch_bounds__(kRowWarps* kWarp) row_kernel(TaskTable table, ProductShape shape) {
  const ProductTask task = table.tasks[blockIdx.z];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const std::int64_t j0 = static_cast<std::int64_t>(blockIdx.y) * kRowColumns;
  if (i >= task.m) return;  // whole warps
  float sums[kRowColumns] = {};
  for (std::int64_t k = lane; k < task.depth; k += kWarp) {
    const float value = widened(task.a, shape.a_type, i * shape.a_row + k * shape.a_col);
    for (int s = 0; s < kRowColumns; ++s)
      if (j0 + s < shape.n)
        sums[s] = fmaf(value, widened(task.b, shape.b_type, k * shape.b_row + (j0 + s) * shape.b_col), sums[s]);
  }
  for (int s = 0; s < kRowColumns; ++s) {
    const float sum = warp_sum(sums[s]);
    if (lane == 0 && j0 + s < shape.n) finish(task.c, i * shape.c_row + j0 + s, sum, shape);
  }
}

}  // namespace

void products(cudaStream_t stream, const char* operation, std::span<const ProductTask> tasks,
              const ProductShape& shape) {
  for (std::size_t first = 0; first < tasks.size(); first += kMostTasks) {
    TaskTable table{};
    const std::size_t count = std::min<std::size_t>(kMostTasks, tasks.size() - first);
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < count; ++i) {
      table.tasks[i] = tasks[first + i];
      rows = std::max<std::int64_t>(rows, tasks[first + i].m);
    }
    if (rows == 0) continue;
    check(rows <= kTile * kMaxGridY, "products: too many rows for one launch");
    const auto depth_of_grid = static_cast<unsigned>(count);
    if (shape.by_rows) {
      const dim3 grid(grid_size(rows, kRowWarps, INT32_MAX), grid_size(shape.n, kRowColumns, kMaxGridY), depth_of_grid);
      launch(stream, operation, grid, dim3(kRowWarps * kWarp), row_kernel, table, shape);
    } else {
      const dim3 grid(grid_size(shape.n, kTile, INT32_MAX), grid_size(rows, kTile, kMaxGridY), depth_of_grid);
      launch(stream, operation, grid, dim3(kSide * kSide), tile_kernel, table, shape);
    }
  }
}

}  // namespace fedpdpo::cuda
