// Where the columns of a head begin in (T, (H + 2 H_kv) head_dim): queries, keys, values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

struct Heads {
  int num_heads, num_kv_heads, head_dim;
  float scale;

  explicit Heads(const AttentionShape& s)
      : num_heads(s.num_heads), num_kv_heads(s.num_kv_heads), head_dim(s.head_dim), scale(s.scale) {}
  /// Query heads that read one key head.
  __device__ int shared() const { return num_heads / num_kv_heads; }
  __device__ std::int64_t query(int head) const { return static_cast<std::int64_t>(head) * head_dim; }
  __device__ std::int64_t key(int kv_head) const { return static_cast<std::int64_t>(num_heads + kv_head) * head_dim; }
  __device__ std::int64_t value(int kv_head) const {
    return static_cast<std::int64_t>(num_heads + num_kv_heads + kv_head) * head_dim;
  }
};

}  // namespace fedpdpo::cuda
