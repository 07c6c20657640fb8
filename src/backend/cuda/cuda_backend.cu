// The device's memory, the debug mode, and all products; the operations by rows are in cuda_row_operations.cu.
#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "cuda/cuda_backend.hpp"
#include "cuda/graph_recording.hpp"
#include "cuda/kernels.hpp"
#include "cuda/low_rank.hpp"
#include "cuda/status.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace fedpdpo

namespace fedpdpo::cuda {
namespace {

bool checks_wanted(const CudaOptions& options) {
  const char* text = std::getenv("FEDPDPO_CUDA_CHECK");
  return options.check_outputs || (text != nullptr && std::string_view(text) != "" && std::string_view(text) != "0");
}

/// Rows and columns from which a client's own product goes to cuBLASLt: by the parameters' shape alone. A private head
/// is among them, and so agrees to the bit with the pretrained one that it starts as, which `linear` multiplies by (in
/// fp32). cuBLASLt does not mix dtypes.
bool is_large(const ConstClientMatrix& p, ConstView x, ConstView y) {
  return p.rows >= 32 && p.cols >= 32 && x.dtype == DType::f32 && y.dtype == DType::f32;
}

const void* row(ConstView x, std::int64_t t) {
  return static_cast<const std::byte*>(x.data) + t * x.stride * static_cast<std::int64_t>(dtype_size(x.dtype));
}
void* row(View x, std::int64_t t) { return const_cast<void*>(row(ConstView(x), t)); }

}  // namespace

CudaBackend::CudaBackend(const CudaOptions& options)
    : device_(std::make_shared<Device>(options.device)),
      check_outputs_(checks_wanted(options)),
      rounding_(options.products == ClientProducts::tf32 ? Rounding::tf32 : Rounding::none),
      copies_(device_),
      gemm_(device_),
      plan_(device_),
      half_(device_),
      delta_(device_),
      sums_(device_),
      first_nan_(device_) {}

std::string CudaBackend::description() const {
  return device_->description() + (check_outputs_ ? ", every output checked" : "");
}

std::shared_ptr<void> CudaBackend::do_allocate(std::size_t bytes) {
  void* memory = device_->allocate(bytes);
  std::shared_ptr<void> owner(memory, [device = device_](void* p) { device->release(p); });
  if (bytes > 0) check_cuda(cudaMemsetAsync(memory, 0, bytes, stream()), "cudaMemsetAsync");
  return owner;
}

void CudaBackend::copy_to_device(void* device, const void* host, std::size_t bytes) {
  device_->to_device(device, host, bytes);
}
void CudaBackend::copy_to_host(void* host, const void* device, std::size_t bytes) {
  device_->to_host(host, device, bytes);
}

std::optional<DeviceMemory> CudaBackend::memory() const {
  // Memory given back counts once the stream has come there.
  device_->synchronize();
  return device_->memory();
}
CopyTicket CudaBackend::copy_to_device_async(void* device, const void* pinned, std::size_t bytes) {
  return copies_.copy(device, pinned, bytes, cudaMemcpyHostToDevice);
}
CopyTicket CudaBackend::copy_to_host_async(void* pinned, const void* device, std::size_t bytes) {
  return copies_.copy(pinned, device, bytes, cudaMemcpyDeviceToHost);
}
void CudaBackend::synchronize() {
  device_->synchronize();
  copies_.synchronize();
}

void CudaBackend::written(const char* operation, std::initializer_list<ConstView> outputs) {
  if (!check_outputs_) [[likely]]
    return;
  check_cuda(cudaStreamSynchronize(stream()), operation);
  for (const ConstView& output : outputs) {
    if (output.size() == 0 || output.dtype == DType::i32 || output.dtype == DType::i64) continue;
    unsigned long long* first = first_nan_.get(1);
    constexpr unsigned long long kNone = ~0ull;
    device_->to_device(first, &kNone, sizeof kNone);
    find_nan(stream(), output, first);
    unsigned long long at = kNone;
    device_->to_host(&at, first, sizeof at);
    if (at == kNone) continue;
    const auto cols = static_cast<unsigned long long>(output.cols);
    throw DeviceError(std::string("CUDA: NaN in the output of ") + operation + ", (" + std::to_string(output.rows) +
                      ", " + std::to_string(output.cols) + "), first in row " + std::to_string(at / cols) +
                      ", column " + std::to_string(at % cols));
  }
}

void CudaBackend::written(const char* operation, std::span<const MemberRows> members,
                          std::initializer_list<ConstView> rows) {
  if (!check_outputs_) [[likely]]
    return;
  for (const MemberRows& member : members)
    for (const ConstView& view : rows) written(operation, {view.row_range(member.begin, member.end)});
}

void CudaBackend::written(const char* operation, std::span<const MemberRows> members, ConstClientMatrix matrix) {
  if (!check_outputs_) [[likely]]
    return;
  for (const MemberRows& member : members)
    written(operation, {view_of(matrix.data + member.slot * matrix.slot_stride, matrix.rows, matrix.cols)});
}

void CudaBackend::frozen_product(const char* operation, ConstView x, ConstView w, bool transpose_w, View y,
                                 Write mode) {
  const GemmShape shape{.m = x.rows, .n = y.cols, .k = x.cols, .mode = mode, .type = w.dtype, .c_type = y.dtype};
  Operand activations{x.data, x.stride, false};
  if (x.dtype != w.dtype) {
    const std::int64_t stride = (x.cols + 7) / 8 * 8;  // rows begin at multiples of 16 bytes
    std::uint16_t* half = half_.get(static_cast<std::size_t>(x.rows * stride));
    round_to_bf16(stream(), x, half, stride);
    activations = {half, stride, false};
  }
  gemm_.multiply(operation, shape, activations, {w.data, w.stride, transpose_w}, y.data, y.stride);
}

void CudaBackend::do_linear(ConstView x, ConstView w, ConstView bias, View y, Write mode) {
  frozen_product("linear", x, w, true, y, mode);
  if (bias.cols > 0) add_bias(stream(), bias, y);
  written("linear", {y});
}

void CudaBackend::do_linear_backward(ConstView d_y, ConstView w, View d_x, Write mode) {
  frozen_product("linear_backward", d_y, w, false, d_x, mode);
  written("linear_backward", {d_x});
}

void CudaBackend::do_grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x,
                                    ConstClientMatrix p, View y, Write mode) {
  const bool transposed = how == Multiply::by_transpose;
  if (is_low_rank(x, y)) {
    const FactorLayout layout = transposed ? FactorLayout::thin_by_wide : FactorLayout::wide_by_thin;
    cuda::low_rank_down(stream(), "grouped_matmul", members, low_rank_product(x, y, p, layout, alpha, mode));
    return written("grouped_matmul", members, {y});
  }
  if (is_low_rank(y, x)) {
    const FactorLayout layout = transposed ? FactorLayout::wide_by_thin : FactorLayout::thin_by_wide;
    cuda::low_rank_up(stream(), "grouped_matmul", members, low_rank_product(y, x, p, layout, alpha, mode));
    return written("grouped_matmul", members, {y});
  }
  tasks_.clear();
  for (const MemberRows& member : members) {
    const std::int32_t rows = member.end - member.begin;
    if (rows == 0) continue;
    const void* x_rows = row(x, member.begin);
    const float* matrix = p.data + member.slot * p.slot_stride;
    void* y_rows = row(y, member.begin);
    if (is_large(p, x, y)) {
      gemm_.multiply("grouped_matmul",
                     {.m = rows, .n = y.cols, .k = x.cols, .alpha = alpha, .mode = mode, .rounding = rounding_},
                     {x_rows, x.stride, false}, {matrix, p.cols, transposed}, y_rows, y.stride);
    } else {
      tasks_.push_back({x_rows, matrix, y_rows, rows, static_cast<std::int32_t>(x.cols)});
    }
  }
  products(stream(), "grouped_matmul", tasks_,
           {.n = y.cols,
            .a_row = x.stride,
            .a_col = 1,
            .b_row = transposed ? 1 : p.cols,
            .b_col = transposed ? p.cols : 1,
            .c_row = y.stride,
            .alpha = alpha,
            .mode = mode,
            .a_type = x.dtype,
            .c_type = y.dtype,
            .by_rows = few_columns(y.cols, x.cols)});
  written("grouped_matmul", members, {y});
}

void CudaBackend::do_grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x,
                                   ClientMatrix d_p, Write mode) {
  if (is_low_rank(d_y, x) || is_low_rank(x, d_y)) {
    const LowRankProducts products = is_low_rank(d_y, x)
                                         ? low_rank_product(d_y, x, d_p, FactorLayout::wide_by_thin, alpha, mode)
                                         : low_rank_product(x, d_y, d_p, FactorLayout::thin_by_wide, alpha, mode);
    cuda::low_rank_outer(stream(), "grouped_outer", members, products);
    return written("grouped_outer", members, d_p);
  }
  tasks_.clear();
  for (const MemberRows& member : members) {
    const std::int32_t rows = member.end - member.begin;
    float* out = d_p.data + member.slot * d_p.slot_stride;
    const void* d_y_rows = row(d_y, member.begin);
    const void* x_rows = row(x, member.begin);
    if (rows == 0) {
      if (mode == Write::overwrite) cuda::fill(stream(), view_of(out, d_p.rows, d_p.cols), 0);
    } else if (is_large(d_p, x, d_y)) {
      gemm_.multiply("grouped_outer",
                     {.m = d_p.rows,
                      .n = d_p.cols,
                      .k = rows,
                      .alpha = alpha,
                      .mode = mode,
                      .rounding = rounding_,
                      .batch = BatchDimension::k},
                     {d_y_rows, d_y.stride, true}, {x_rows, x.stride, false}, out, d_p.cols);
    } else {
      tasks_.push_back({d_y_rows, x_rows, out, static_cast<std::int32_t>(d_p.rows), rows});
    }
  }
  products(stream(), "grouped_outer", tasks_,
           {.n = d_p.cols,
            .a_row = 1,
            .a_col = d_y.stride,
            .b_row = x.stride,
            .b_col = 1,
            .c_row = d_p.cols,
            .alpha = alpha,
            .mode = mode,
            .a_type = d_y.dtype,
            .b_type = x.dtype});
  written("grouped_outer", members, d_p);
}

void CudaBackend::do_attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                               View lse) {
  cuda::attention(stream(), plan_.get(plan), shape, qkv, out, lse);
  written("attention", {out, lse});
}

void CudaBackend::do_attention_backward(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv,
                                        ConstView out, ConstView lse, ConstView d_out, View d_qkv,
                                        const RotaryRows& rotary) {
  float* delta = delta_.get(static_cast<std::size_t>(qkv.rows * shape.num_heads));
  cuda::attention_backward(stream(), plan_.get(plan), shape, qkv, out, lse, d_out,
                           view_of(delta, qkv.rows, shape.num_heads), d_qkv, rotary);
  written("attention_backward", {d_qkv});
}

double CudaBackend::do_dot(ConstView x, ConstView y) {
  double* sums = sums_.get(static_cast<std::size_t>(dot_scratch(x, y)));
  cuda::dot(stream(), x, y, sums);
  double total = 0;
  device_->to_host(&total, sums, sizeof total);
  return total;
}

void CudaBackend::do_squared_norms(std::span<const ConstView> xs, std::span<double> norms) {
  double* sums = sums_.get(static_cast<std::size_t>(squared_norms_scratch(xs)));
  cuda::squared_norms(stream(), xs, sums);
  device_->to_host(norms.data(), sums, norms.size_bytes());
}

std::unique_ptr<Recording> CudaBackend::make_recording() { return std::make_unique<GraphRecording>(device_); }

void CudaBackend::run(Recording& recording, const std::function<void()>& work) {
  if (!supports_recording()) return work();
  static_cast<GraphRecording&>(recording).run(work);
}

}  // namespace fedpdpo::cuda
