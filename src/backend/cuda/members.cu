// Per-client bias and gate, by cohort member, and sums over a member's rows: a block sums 32 columns by 8 threads each,
// whose partial sums are added in order.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr int kColumns = 32, kParts = 8;

/// out[slot, c] (+)= sum over the member's rows of term(slot, t, c).
template <class Term>
__global__ void member_sum_kernel(MemberTable table, ClientMatrix out, Write mode, Term term) {
  __shared__ float partial[kParts][kColumns];
  const MemberRows member = table.members[blockIdx.y];
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  float sum = 0;
  if (c < out.cols)
    for (std::int64_t t = member.begin + static_cast<std::int64_t>(threadIdx.y); t < member.end; t += kParts)
      sum += term(member.slot, t, c);
  partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= out.cols) return;
  float total = 0;
  for (int part = 0; part < kParts; ++part) total += partial[part][threadIdx.x];
  put(out.data + member.slot * out.slot_stride + c, total, mode);
}

template <class Term>
void member_sum(cudaStream_t stream, const char* operation, Members members, ClientMatrix out, Write mode, Term term) {
  for_tables(members, [&](const MemberTable& table, std::int64_t) {
    const dim3 grid(grid_size(out.cols, kColumns, INT32_MAX), static_cast<unsigned>(table.count), 1);
    launch(stream, operation, grid, dim3(kColumns, kParts, 1), member_sum_kernel<Term>, table, out, mode, term);
  });
}

}  // namespace

void member_bias(cudaStream_t stream, Members members, ConstClientMatrix b, View y) {
  over_member_elements(stream, "grouped_add_bias", members, y.cols,
                       [=] __device__(std::int32_t slot, std::int64_t t, std::int64_t c) {
                         row_of(y, t)[c] += b.data[slot * b.slot_stride + c];
                       });
}

void member_column_sum(cudaStream_t stream, Members members, ConstView d_y, ClientMatrix d_b, Write mode) {
  member_sum(stream, "grouped_column_sum", members, d_b, mode,
             [=] __device__(std::int32_t, std::int64_t t, std::int64_t c) { return row_of(d_y, t)[c]; });
}

void member_gate(cudaStream_t stream, Members members, ConstView h, ConstView a, ConstClientMatrix g, View z) {
  over_member_elements(stream, "grouped_gate", members, h.cols,
                       [=] __device__(std::int32_t slot, std::int64_t t, std::int64_t c) {
                         const float base = row_of(h, t)[c];
                         const float gate = g.data[slot * g.slot_stride + c];
                         row_of(z, t)[c] = fmaf(gate, row_of(a, t)[c] - base, base);
                       });
}

void member_gate_backward(cudaStream_t stream, Members members, ConstView h, ConstView a, ConstClientMatrix g,
                          ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g, Write d_g_mode) {
  // The sums first: the gradients may be written over what they read.
  member_sum(stream, "grouped_gate_backward", members, d_g, d_g_mode,
             [=] __device__(std::int32_t, std::int64_t t, std::int64_t c) {
               return (row_of(a, t)[c] - row_of(h, t)[c]) * row_of(d_z, t)[c];
             });
  over_member_elements(stream, "grouped_gate_backward", members, h.cols,
                       [=] __device__(std::int32_t slot, std::int64_t t, std::int64_t c) {
                         const float gradient = row_of(d_z, t)[c];
                         const float to_a = g.data[slot * g.slot_stride + c] * gradient;
                         put(row_of(d_h, t) + c, gradient - to_a, d_h_mode);
                         row_of(d_a, t)[c] = to_a;
                       });
}

}  // namespace fedpdpo::cuda
