// ParameterLayout: all trainables of a client in one flat fp32 buffer, by named groups, the shared ones first, so that
// what travels is one span. Within a group: by layer, block and site, so that the A matrices of a block's sites are one
// stacked matrix.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/model/adapter_options.hpp"
#include "fedpdpo/model/config.hpp"
#include "fedpdpo/model/head_weights.hpp"

namespace fedpdpo {

enum class Group : std::uint8_t { lora_a, lora_b, bottleneck, head, reward, personal_a, personal_b };
inline constexpr int num_groups = 7;
std::string_view group_name(Group group);
/// The groups of an adapter's factors A and B.
constexpr Group group_a(Adapter adapter) { return adapter == Adapter::shared ? Group::lora_a : Group::personal_a; }
constexpr Group group_b(Adapter adapter) { return adapter == Adapter::shared ? Group::lora_b : Group::personal_b; }

struct Parameter {
  std::string name;  ///< PEFT's name for LoRA, e.g. "model.layers.0.self_attn.q_proj.lora_A.weight"; the personal
                     ///< one's ends in "lora_A.personal.weight"
  Group group = Group::lora_a;
  std::int64_t rows = 0, cols = 0;
  std::size_t offset = 0;
  int site = -1;  ///< of LoRA: index of its module in ModelConfig::sites (whose checkpoint_row orders the rows of B)

  std::size_t size() const { return static_cast<std::size_t>(rows * cols); }
};

struct ParameterRange {
  std::size_t begin = 0, end = 0;
  std::size_t size() const { return end - begin; }
};

/// A LoRA site: columns [begin, end) of a block's output.
struct LoraSite {
  int a = -1, b = -1;  ///< indices of its Parameters
  int personal_a = -1, personal_b = -1;
  std::int32_t begin = 0, end = 0;  ///< columns of the block's output
  std::int32_t u_begin = 0;         ///< first column of its A x in the block's (T, sites * r)

  int a_of(Adapter adapter) const { return adapter == Adapter::shared ? a : personal_a; }
  int b_of(Adapter adapter) const { return adapter == Adapter::shared ? b : personal_b; }
};

class ParameterLayout {
 public:
  /// The layout of the modules that `options` asks for, with `shared` groups first. InputError where a LoRA target
  /// names no module of the model.
  ParameterLayout(const ModelConfig& config, const AdapterOptions& options, std::span<const Group> shared);

  const AdapterOptions& options() const { return options_; }
  std::span<const Parameter> parameters() const { return parameters_; }
  std::size_t size() const { return size_; }
  std::size_t shared_size() const { return shared_size_; }
  bool is_shared(Group group) const { return shared_[static_cast<std::size_t>(group)]; }
  bool has(Group group) const { return range(group).size() > 0; }
  ParameterRange range(Group group) const { return ranges_[static_cast<std::size_t>(group)]; }
  /// Offsets of the parameters within the shared span, first 0, last shared_size: the blocks of the exact sum.
  std::vector<std::size_t> shared_blocks() const;
  /// LoRA sites of a block of a layer; empty where it has none.
  std::span<const LoraSite> sites(int layer, Block block) const;
  /// Lowest layer with a LoRA site; num_layers where there is none.
  int lowest_lora_layer() const { return lowest_lora_layer_; }
  float lora_scale() const;
  /// Index of the named parameter, or -1.
  int find(std::string_view name) const;

  /// View of parameter `index` in buffers of several slots: slot s at base + s * slot_stride.
  ConstClientMatrix matrix(int index, const float* base, std::int64_t slot_stride) const;
  ClientMatrix matrix(int index, float* base, std::int64_t slot_stride) const;
  /// The A matrices of a block's sites as one (sites * r, K) matrix.
  ConstClientMatrix stacked_a(int layer, Block block, Adapter adapter, const float* base,
                              std::int64_t slot_stride) const;
  ClientMatrix stacked_a(int layer, Block block, Adapter adapter, float* base, std::int64_t slot_stride) const;

  // Indices of the private modules' parameters, -1 where absent.
  int bottleneck_down = -1, bottleneck_bias = -1, bottleneck_up = -1, bottleneck_gate = -1;
  int head_weight = -1, head_q = -1, head_p = -1;
  int reward_weight = -1, reward_bias = -1;

  /// A group's columns of rows over all trainables, or over the shared span where the group is shared.
  View part(View rows, Group group) const;
  ConstView part(ConstView rows, Group group) const;

  /// Values at the start: A and D Kaiming-uniform as PEFT and torch.nn.Linear draw them (bound 1 / sqrt(fan_in)), B, U,
  /// Q, reward and gate 0, H the pretrained head (V, d). LoRA is drawn from (seed) alone, so that every client starts
  /// at the same point, and the personal LoRA where the shared one starts; private modules from (seed, client).
  void initialize(std::uint64_t seed, int client, const HeadWeights& pretrained_head, std::span<float> values) const;
  /// The shared LoRA's start alone, drawn anew for a round (0: the run's start); `values` is over all trainables or
  /// over the shared span.
  void restart_lora(std::uint64_t seed, int round, std::span<float> values) const;
  /// Gives the shared LoRA in `values` the rank `rank` <= r: rows of A and columns of B behind it become zero, and stay
  /// so in training.
  void truncate_rank(int rank, std::span<float> values) const;

 private:
  int add(std::string name, Group group, std::int64_t rows, std::int64_t cols, int site = -1);
  void draw_lora(std::uint64_t seed, int round, const Parameter& p, std::span<float> part) const;

  AdapterOptions options_;
  std::vector<Parameter> parameters_;
  std::array<ParameterRange, num_groups> ranges_{};
  std::array<bool, num_groups> shared_{};
  std::vector<std::vector<LoraSite>> sites_;  // [layer * num_blocks + block]
  std::size_t size_ = 0, shared_size_ = 0;
  int lowest_lora_layer_ = 0;
};

}  // namespace fedpdpo
