// The words for the values of enumerated options, the same on the command line, in config files and in run.h5.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

template <class Enum>
struct NamedValue {
  Enum value;
  std::string_view name;
};

inline constexpr std::array<NamedValue<PartitionKind>, 3> partition_kind_names{
    {{PartitionKind::dirichlet, "dirichlet"}, {PartitionKind::iid, "iid"}, {PartitionKind::quantity, "quantity"}}};
inline constexpr std::array<NamedValue<GroupKind>, 4> group_kind_names{{{GroupKind::all, "all"},
                                                                        {GroupKind::domain, "domain"},
                                                                        {GroupKind::clusters, "clusters"},
                                                                        {GroupKind::agreement, "agreement"}}};
inline constexpr std::array<NamedValue<PersonalLora>, 4> personal_lora_names{{{PersonalLora::none, "none"},
                                                                              {PersonalLora::ditto, "ditto"},
                                                                              {PersonalLora::apfl, "apfl"},
                                                                              {PersonalLora::feddpa, "feddpa"}}};
inline constexpr std::array<NamedValue<Compression>, 3> compression_names{
    {{Compression::none, "none"}, {Compression::int8, "int8"}, {Compression::topk, "topk"}}};
inline constexpr std::array<NamedValue<Reduction>, 2> reduction_names{
    {{Reduction::exact, "exact"}, {Reduction::fast, "fast"}}};
inline constexpr std::array<NamedValue<ReductionRoute>, 2> reduction_route_names{
    {{ReductionRoute::flat, "flat"}, {ReductionRoute::hierarchical, "hierarchical"}}};
inline constexpr std::array<NamedValue<Aggregation>, 3> aggregation_names{
    {{Aggregation::automatic, "auto"}, {Aggregation::host, "host"}, {Aggregation::nccl, "nccl"}}};
inline constexpr std::array<NamedValue<HeadKind>, 3> head_kind_names{
    {{HeadKind::full, "full"}, {HeadKind::lowrank, "lowrank"}, {HeadKind::frozen, "frozen"}}};
inline constexpr std::array<NamedValue<BottleneckKind>, 2> bottleneck_kind_names{
    {{BottleneckKind::residual, "residual"}, {BottleneckKind::gated, "gated"}}};
inline constexpr std::array<NamedValue<RewardPool>, 2> reward_pool_names{
    {{RewardPool::last, "last"}, {RewardPool::mean, "mean"}}};
inline constexpr std::array<NamedValue<RewardGradient>, 3> reward_gradient_names{
    {{RewardGradient::all, "all"}, {RewardGradient::private_only, "private"}, {RewardGradient::none, "none"}}};
inline constexpr std::array<NamedValue<RateSchedule>, 2> rate_schedule_names{
    {{RateSchedule::constant, "constant"}, {RateSchedule::cosine, "cosine"}}};
inline constexpr std::array<NamedValue<Moments>, 2> moments_names{{{Moments::keep, "keep"}, {Moments::reset, "reset"}}};
inline constexpr std::array<NamedValue<LocalSchedule>, 2> local_schedule_names{
    {{LocalSchedule::joint, "joint"}, {LocalSchedule::alternate, "alternate"}}};
inline constexpr std::array<NamedValue<Precision>, 2> precision_names{
    {{Precision::fp32, "fp32"}, {Precision::bf16, "bf16"}}};
inline constexpr std::array<NamedValue<Graphs>, 3> graphs_names{
    {{Graphs::small_passes, "auto"}, {Graphs::always, "on"}, {Graphs::never, "off"}}};
inline constexpr std::array<NamedValue<Resume>, 2> resume_names{{{Resume::automatic, "auto"}, {Resume::none, "none"}}};
inline constexpr std::array<NamedValue<bool>, 2> switch_names{{{true, "on"}, {false, "off"}}};

/// The word for `value`.
template <class Enum, std::size_t N>
constexpr std::string_view name_of(const std::array<NamedValue<Enum>, N>& names, Enum value) {
  for (const NamedValue<Enum>& entry : names) {
    if (entry.value == value) return entry.name;
  }
  return {};
}

}  // namespace fedpdpo
