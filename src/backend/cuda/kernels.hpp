// Launchers of the CUDA backend's own kernels, on the stream they are given. Contracts are the public operations'
// (backend.hpp), and shapes have been checked there.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "adamw_factors.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

using Members = std::span<const MemberRows>;

// elements.cu
void fill(cudaStream_t stream, View y, float value);
void copy(cudaStream_t stream, ConstView x, View y);
/// y (rows, cols) bf16, contiguous rows of `y_stride`.
void round_to_bf16(cudaStream_t stream, ConstView x, std::uint16_t* y, std::int64_t y_stride);
/// y = a + b; b may be bf16.
void add(cudaStream_t stream, ConstView a, ConstView b, View y);
void axpy(cudaStream_t stream, float alpha, ConstView x, View y, Write mode);
void scale_rows(cudaStream_t stream, ConstView weights, View x);
void add_bias(cudaStream_t stream, ConstView bias, View y);
void rotate(cudaStream_t stream, ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim,
            Rotation direction, View x);
void dropout(cudaStream_t stream, float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode);

// optimizer.cu
void adamw(cudaStream_t stream, std::span<const AdamWSpan> spans);

// rows.cu
void embed(cudaStream_t stream, ConstView tokens, ConstView positions, ConstView table, ConstView position_table,
           View y);
void gather_rows(cudaStream_t stream, ConstView x, ConstView rows, View y);
void scatter_add_rows(cudaStream_t stream, ConstView x, ConstView rows, View y);

// norms.cu
void rms_norm(cudaStream_t stream, ConstView x, ConstView w, float eps, View y);
void rms_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
void residual_rms_norm(cudaStream_t stream, ConstView x, ConstView delta, ConstView w, float eps, View sum, View y);
void residual_rms_norm_backward(cudaStream_t stream, ConstView sum, ConstView w, float eps, ConstView d_y, View d_sum,
                                View d_delta, View y);
void layer_norm(cudaStream_t stream, ConstView x, ConstView w, ConstView b, float eps, View y);
void layer_norm_backward(cudaStream_t stream, ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
void head_norm(cudaStream_t stream, ConstView x, ConstView w, std::int32_t head_dim, float eps, View y);
void head_norm_backward(cudaStream_t stream, ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                        View d_x);

// activations.cu
void gated_activation(cudaStream_t stream, Activation kind, ConstView x, View y);
void gated_activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x, View y);
void activation(cudaStream_t stream, Activation kind, ConstView x, View y);
void activation_backward(cudaStream_t stream, Activation kind, ConstView x, ConstView d_y, View d_x, View y);

// members.cu
void member_bias(cudaStream_t stream, Members members, ConstClientMatrix b, View y);
void member_column_sum(cudaStream_t stream, Members members, ConstView d_y, ClientMatrix d_b, Write mode);
void member_gate(cudaStream_t stream, Members members, ConstView h, ConstView a, ConstClientMatrix g, View z);
void member_gate_backward(cudaStream_t stream, Members members, ConstView h, ConstView a, ConstClientMatrix g,
                          ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g, Write d_g_mode);

// softmax.cu
void log_softmax(cudaStream_t stream, ConstView logits, ConstView targets, View log_prob, View lse);
void log_softmax_backward(cudaStream_t stream, ConstView targets, ConstView lse, ConstView coefficient,
                          ConstView logits, View d_logits);

// sums.cu
/// Doubles of scratch that `dot` needs, the first of which is the result.
std::int64_t dot_scratch(ConstView x, ConstView y);
void dot(cudaStream_t stream, ConstView x, ConstView y, double* scratch);
/// Doubles of scratch that `squared_norms` needs, the first of which are the results.
std::int64_t squared_norms_scratch(std::span<const ConstView> xs);
/// The bits of dot(x, x) of each.
void squared_norms(cudaStream_t stream, std::span<const ConstView> xs, double* scratch);
/// *first is made the smallest index (row * cols + column) of a NaN in x, or stays as it is.
void find_nan(cudaStream_t stream, ConstView x, unsigned long long* first);

// fixed_point.cu
void block_peaks(cudaStream_t stream, ConstView values, ConstView offsets, View peaks);
void add_terms(cudaStream_t stream, ConstView values, double weight, ConstView offsets, ConstView exponents,
               TermCoding coding, View sums);
void round_sums(cudaStream_t stream, ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding, View y);

}  // namespace fedpdpo::cuda
