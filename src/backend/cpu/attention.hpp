// Prefix-shared causal attention of one (group, kv head): see attention.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cpu {

/// Floats of scratch that a task over any group of the plan needs.
std::size_t attention_scratch(const AttentionPlan& plan, const AttentionShape& shape);

/// Query heads of one kv head over the rows of one group of segments. Writes only these rows and heads.
void attention_task(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group, std::int64_t kv_head,
                    ConstView qkv, View out, View lse, float* scratch);
void attention_backward_task(const AttentionPlan& plan, const AttentionShape& shape, std::int64_t group,
                             std::int64_t kv_head, ConstView qkv, ConstView out, ConstView lse, ConstView d_out,
                             View d_qkv, float* scratch);

}  // namespace fedpdpo::cpu
