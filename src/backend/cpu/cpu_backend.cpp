// The CPU's memory, matrix products and attention; the row operations are in cpu_row_operations.cpp.
#include "cpu/cpu_backend.hpp"

#include <hwy/targets.h>
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/attention.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options);
}

}  // namespace fedpdpo

namespace fedpdpo::cpu {

namespace {

int checked_threads(int num_threads) {
  check(num_threads >= 1, "cpu backend: at least one thread");
  return num_threads;
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : num_threads_(checked_threads(options.num_threads)), gemm_(num_threads_), scratch_(num_threads_) {}

std::string CpuBackend::description() const {
  const auto supported = hwy::SupportedTargets();
  const char* vectors = (supported & HWY_AVX3) != 0 ? "AVX-512" : (supported & HWY_AVX2) != 0 ? "AVX2" : "scalar";
  return "CPU, " + std::to_string(num_threads_) + (num_threads_ == 1 ? " thread, " : " threads, ") + vectors +
         (cpu_has_bf16() ? ", bf16 products" : "");
}

std::shared_ptr<void> CpuBackend::do_allocate(std::size_t bytes) {
  const std::size_t rounded = (bytes + 63) / 64 * 64 + (bytes == 0 ? 64 : 0);
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data, 0, rounded);
  return {data, [](void* p) { std::free(p); }};
}

void CpuBackend::copy_to_device(void* device, const void* host, std::size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}
void CpuBackend::copy_to_host(void* host, const void* device, std::size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

void CpuBackend::do_linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) {
  const bool accumulate = mode == Write::accumulate;
  if (w.dtype == DType::bf16) {
    gemm_.multiply_bf16(x.rows, w.rows, w.cols, x.f32(), x.stride, static_cast<const std::uint16_t*>(w.data), w.stride,
                        true, accumulate, y.f32(), y.stride);
  } else {
    gemm_.multiply(x.rows, w.rows, w.cols, 1, x.f32(), x.stride, w.f32(), w.stride, true, accumulate, y.f32(),
                   y.stride);
  }
  if (bias.cols > 0) {
    parallel_ranges(num_threads_, y.rows, y.size(),
                    [&](std::int64_t begin, std::int64_t end) { add_bias(bias, y.row_range(begin, end)); });
  }
}

void CpuBackend::do_linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) {
  const bool accumulate = mode == Write::accumulate;
  if (w.dtype == DType::bf16) {
    gemm_.multiply_bf16(d_y.rows, w.cols, w.rows, d_y.f32(), d_y.stride, static_cast<const std::uint16_t*>(w.data),
                        w.stride, false, accumulate, d_x.f32(), d_x.stride);
  } else {
    gemm_.multiply(d_y.rows, w.cols, w.rows, 1, d_y.f32(), d_y.stride, w.f32(), w.stride, false, accumulate, d_x.f32(),
                   d_x.stride);
  }
}

void CpuBackend::do_grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x,
                                   ConstClientMatrix p, View y, Write mode) {
  for (const MemberRows& member : members) {
    if (member.begin == member.end) continue;
    gemm_.multiply(member.end - member.begin, y.cols, x.cols, alpha, x.f32() + member.begin * x.stride, x.stride,
                   p.data + member.slot * p.slot_stride, p.cols, how == Multiply::by_transpose,
                   mode == Write::accumulate, y.f32() + member.begin * y.stride, y.stride);
  }
}

void CpuBackend::do_grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x,
                                  ClientMatrix d_p, Write mode) {
  for (const MemberRows& member : members) {
    float* out = d_p.data + member.slot * d_p.slot_stride;
    if (member.begin == member.end) {
      if (mode == Write::overwrite) cpu::fill(view_of(out, d_p.rows, d_p.cols), 0);
      continue;
    }
    gemm_.multiply_outer(d_p.rows, d_p.cols, member.end - member.begin, alpha, d_y.f32() + member.begin * d_y.stride,
                         d_y.stride, x.f32() + member.begin * x.stride, x.stride, mode == Write::accumulate, out,
                         d_p.cols);
  }
}

template <class Task>
void CpuBackend::over_attention_tasks(const AttentionPlan& plan, const AttentionShape& shape, Task task) {
  const auto groups = static_cast<std::int64_t>(plan.group_offsets.size()) - 1;
  const std::int64_t tasks = groups * shape.num_kv_heads;
  const std::size_t floats = attention_scratch(plan, shape);
  for (Scratch<float>& scratch : scratch_) scratch.get(floats);
  if (num_threads_ == 1 || tasks == 1) {
    for (std::int64_t i = 0; i < tasks; ++i) task(i / shape.num_kv_heads, i % shape.num_kv_heads, scratch_[0].get(0));
    return;
  }
#pragma omp parallel for num_threads(num_threads_) schedule(dynamic, 1)
  for (std::int64_t i = 0; i < tasks; ++i) {
    task(i / shape.num_kv_heads, i % shape.num_kv_heads, scratch_[omp_get_thread_num()].get(0));
  }
}

void CpuBackend::do_attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                              View lse) {
  over_attention_tasks(plan, shape, [&](std::int64_t group, std::int64_t kv_head, float* scratch) {
    attention_task(plan, shape, group, kv_head, qkv, out, lse, scratch);
  });
}

void CpuBackend::do_attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv,
                                       ConstView out, ConstView lse, ConstView d_out, View d_qkv,
                                       const RotaryRows& rotary) {
  over_attention_tasks(plan, shape, [&](std::int64_t group, std::int64_t kv_head, float* scratch) {
    attention_backward_task(plan, shape, group, kv_head, qkv, out, lse, d_out, d_qkv, scratch);
  });
  if (rotary.cos.cols > 0)
    do_rotate(rotary.positions, rotary.cos, rotary.sin, shape.head_dim, Rotation::inverse,
              d_qkv.columns(0, query_key_width(shape)));
}

}  // namespace fedpdpo::cpu
