// Row kernels of the CPU backend, single-threaded on the views they are given (the backend cuts rows over threads) and
// dispatched at run time to the processor's vectors. Contracts are the public operations' (backend.hpp).
#pragma once

#include <cstdint>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cpu {

// norm_kernels.cpp
void rms_norm(ConstView x, ConstView w, float eps, View y);
void rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
void layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y);
void layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode);
void head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y);
void head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y, View d_x);

// activation_kernels.cpp
void gated_activation(Activation kind, ConstView x, View y);
void gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y);
void activation(Activation kind, ConstView x, View y);
void activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y);

// softmax_kernels.cpp
void log_softmax(ConstView logits, const std::int32_t* targets, float* log_prob, float* lse);
void log_softmax_backward(const std::int32_t* targets, const float* lse, const float* coefficient, ConstView logits,
                          View d_logits);

// elementwise_kernels.cpp
void fill(View y, float value);
void widen_bf16(const std::uint16_t* x, std::int64_t count, float* y);
/// To the nearest, ties to even; NaN stays NaN.
void round_to_bf16(const float* x, std::int64_t count, std::uint16_t* y);
void axpy(float alpha, ConstView x, View y, Write mode);
void scale_rows(const float* weights, View x);
void add_bias(ConstView b, View y);
void column_sum(ConstView x, View d_b, Write mode);
void gate(ConstView h, ConstView a, ConstView g, View z);
/// One range of columns; d_g (1, n).
void gate_backward(ConstView h, ConstView a, ConstView g, ConstView d_z, View d_h, Write d_h_mode, View d_a, View d_g,
                   Write d_g_mode);
void rotate(const std::int32_t* positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
            View x);

// optimizer_kernels.cpp
void adamw(const AdamW& options, View values, ConstView gradients, View first_moment, View second_moment);
/// Of consecutive elements, in double.
double sum_of_products(const float* x, const float* y, std::int64_t count);

// dropout_kernels.cpp
void dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode);

}  // namespace fedpdpo::cpu
