// Prefix-shared causal attention on the device: the plan as kernels read it, and the passes (attention.cu).
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "cuda/device.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

inline constexpr int kMaxHeadDim = 256;

/// First and one past the last segment of a group.
struct SegmentRange {
  std::int32_t first, last;
};

/// A plan in device memory.
struct DevicePlan {
  const Segment* segments = nullptr;
  const SegmentRange* groups = nullptr;          ///< by segment: the segments of its group
  const std::int32_t* segment_of_row = nullptr;  ///< (T)
};

/// Uploads a plan when it differs from the last one: a batch's plan serves all layers, forward and backward.
class PlanUpload {
 public:
  explicit PlanUpload(std::shared_ptr<Device> device);
  DevicePlan get(const AttentionPlan& plan);

 private:
  std::shared_ptr<Device> device_;
  std::vector<Segment> segments_;
  std::vector<std::int32_t> offsets_;
  Scratch<Segment> device_segments_;
  Scratch<SegmentRange> device_groups_;
  Scratch<std::int32_t> device_rows_;
  DevicePlan current_;
};

void attention(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv, View out,
               View lse);
/// delta (T, H) is scratch.
void attention_backward(cudaStream_t stream, const DevicePlan& plan, const AttentionShape& shape, ConstView qkv,
                        ConstView out, ConstView lse, ConstView d_out, View delta, View d_qkv);

}  // namespace fedpdpo::cuda
