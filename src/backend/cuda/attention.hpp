// Prefix-shared causal attention on the device: f32 views by the kernels of attention.cu, a row a warp; bf16 views by
// those of attention_tensor.cu and attention_tensor_backward.cu, by matrix tiles, where these have the head's shape.
#pragma once

#include <cuda_runtime.h>

#include "cuda/attention_plan.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

inline constexpr int kMaxHeadDim = 256;

/// qkv and out are both f32 or both bf16, lse is f32.
void attention(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv, View out,
               View lse);
/// delta (T, H) is scratch; it and lse are f32, the others all f32 or all bf16.
void attention_backward(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv,
                        ConstView out, ConstView lse, ConstView d_out, View delta, View d_qkv,
                        const RotaryRows& rotary);

/// Shapes that the tensor kernels take: heads of at most 128 columns, a positive scale.
bool has_tensor_kernels(const AttentionShape& shape);
/// bf16 views, of a shape that has tensor kernels.
void attention_tensor(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv, View out,
                      View lse);
/// Rotates back by the tables, where it has any: those of can_rotate().
void attention_tensor_backward(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv,
                               ConstView out, ConstView lse, ConstView d_out, View delta, View d_qkv,
                               const RotaryRows& rotary);
/// True where a whole head is rotated and as wide as a tile, so that a lane holds both numbers of every pair.
bool can_rotate(const AttentionShape& shape, const RotaryRows& rotary);

}  // namespace fedpdpo::cuda
