// The flat buffer of a client's trainables: which parameters, in which order, and their values at the start.
#include "fedpdpo/model/layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/random.hpp"
#include "stored_sites.hpp"

namespace fedpdpo {
namespace {

std::set<std::string> split_names(const std::string& list) {
  std::set<std::string> names;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    std::size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) names.insert(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

std::string last_part(const std::string& module) { return module.substr(module.rfind('.') + 1); }

bool is_target(const LinearSite& site, const std::set<std::string>& targets) {
  return targets.contains("all-linear") || targets.contains(site.module) || targets.contains(last_part(site.module));
}

void check_targets(const ModelConfig& config, const std::set<std::string>& targets) {
  std::string known = "all-linear";
  for (const LinearSite& site : config.sites) known += ", " + last_part(site.module);
  for (const std::string& target : targets) {
    bool found = target == "all-linear";
    for (const LinearSite& site : config.sites)
      found = found || target == site.module || target == last_part(site.module);
    if (!found) throw InputError("", "--lora-targets", "names of " + known, target);
  }
  if (targets.empty()) throw InputError("", "--lora-targets", "names of " + known, "none");
}

void uniform(RandomStream& stream, double bound, std::span<float> values) {
  for (float& value : values) value = static_cast<float>((2 * stream.uniform() - 1) * bound);
}

}  // namespace

std::string_view group_name(Group group) {
  switch (group) {
    case Group::lora_a:
      return "lora_a";
    case Group::lora_b:
      return "lora_b";
    case Group::bottleneck:
      return "bottleneck";
    case Group::head:
      return "head";
    case Group::reward:
      return "reward";
    case Group::personal_a:
      return "personal_a";
    case Group::personal_b:
      return "personal_b";
  }
  return "?";
}

int ParameterLayout::add(std::string name, Group group, std::int64_t rows, std::int64_t cols, int site) {
  parameters_.push_back({std::move(name), group, rows, cols, size_, site});
  size_ += parameters_.back().size();
  return static_cast<int>(parameters_.size()) - 1;
}

ParameterLayout::ParameterLayout(const ModelConfig& config, const AdapterOptions& options,
                                 std::span<const Group> shared)
    : options_(options), lowest_lora_layer_(static_cast<int>(config.num_layers)) {
  sites_.resize(static_cast<std::size_t>(config.num_layers) * num_blocks);
  const std::set<std::string> targets = split_names(options.lora_targets);
  if (options.lora_rank > 0) {
    check_targets(config, targets);
    if (options.lora_first_layer < 0 || options.lora_first_layer >= config.num_layers)
      throw InputError("", "--lora-first-layer", fmt::format("0 to {}", config.num_layers - 1),
                       fmt::format("{}", options.lora_first_layer));
    lowest_lora_layer_ = options.lora_first_layer;
  }

  std::vector<Group> order;
  for (Group group : shared) {
    check(std::find(order.begin(), order.end(), group) == order.end(), "a group is shared twice");
    order.push_back(group);
    shared_[static_cast<std::size_t>(group)] = true;
  }
  for (int g = 0; g < num_groups; ++g)
    if (!shared_[static_cast<std::size_t>(g)]) order.push_back(static_cast<Group>(g));

  const std::int64_t d = config.hidden_size, r = options.lora_rank, m = options.bottleneck;
  const auto add_lora = [&](Group group) {
    if (options.lora_rank <= 0) return;
    for (std::int64_t layer = lowest_lora_layer_; layer < config.num_layers; ++layer) {
      for (int b = 0; b < num_blocks; ++b) {
        const auto block = static_cast<Block>(b);
        const std::int64_t width = config.block_shape(block)[1];
        auto& sites = sites_[static_cast<std::size_t>(layer * num_blocks + b)];
        std::size_t index = 0;
        for (int s = 0; s < static_cast<int>(config.sites.size()); ++s) {
          const LinearSite& site = config.sites[static_cast<std::size_t>(s)];
          if (site.block != block || !is_target(site, targets)) continue;
          if (index == sites.size())
            sites.push_back({.begin = site.begin,
                             .end = site.end,
                             .u_begin = static_cast<std::int32_t>(index) * options.lora_rank});
          const std::string name = module_name(config, layer, site) + ".";
          const std::int64_t outputs = site.end - site.begin;
          if (group == Group::lora_a) sites[index].a = add(name + "lora_A.weight", group, r, width, s);
          if (group == Group::lora_b) sites[index].b = add(name + "lora_B.weight", group, outputs, r, s);
          if (group == Group::personal_a)
            sites[index].personal_a = add(name + "lora_A.personal.weight", group, r, width, s);
          if (group == Group::personal_b)
            sites[index].personal_b = add(name + "lora_B.personal.weight", group, outputs, r, s);
          ++index;
        }
      }
    }
  };

  for (Group group : order) {
    ParameterRange& range = ranges_[static_cast<std::size_t>(group)];
    range.begin = size_;
    switch (group) {
      case Group::lora_a:
      case Group::lora_b:
        add_lora(group);
        break;
      case Group::personal_a:
      case Group::personal_b:
        if (options.personal_lora != PersonalLora::none) add_lora(group);
        break;
      case Group::bottleneck:
        if (m <= 0) break;
        bottleneck_down = add("bottleneck.down", group, m, d);
        bottleneck_bias = add("bottleneck.bias", group, 1, m);
        bottleneck_up = add("bottleneck.up", group, d, m);
        if (options.bottleneck_kind == BottleneckKind::gated) bottleneck_gate = add("bottleneck.gate", group, 1, d);
        break;
      case Group::head:
        if (options.head == HeadKind::full) head_weight = add("head.weight", group, config.vocab_size, d);
        if (options.head == HeadKind::lowrank) {
          head_q = add("head.q", group, config.vocab_size, options.head_rank);
          head_p = add("head.p", group, options.head_rank, d);
        }
        break;
      case Group::reward:
        if (!options.reward_head) break;
        reward_weight = add("reward.weight", group, 1, d);
        reward_bias = add("reward.bias", group, 1, 1);
        break;
    }
    range.end = size_;
    if (is_shared(group)) shared_size_ = size_;
  }
}

std::vector<std::size_t> ParameterLayout::shared_blocks() const {
  std::vector<std::size_t> offsets{0};
  for (const Parameter& parameter : parameters_)
    if (is_shared(parameter.group)) offsets.push_back(parameter.offset + parameter.size());
  return offsets;
}

std::span<const LoraSite> ParameterLayout::sites(int layer, Block block) const {
  return sites_[static_cast<std::size_t>(layer * num_blocks + static_cast<int>(block))];
}

float ParameterLayout::lora_scale() const {
  return options_.lora_rank > 0 ? static_cast<float>(options_.lora_alpha / options_.lora_rank) : 0.0f;
}

int ParameterLayout::find(std::string_view name) const {
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    if (parameters_[i].name == name) return static_cast<int>(i);
  return -1;
}

ConstClientMatrix ParameterLayout::matrix(int index, const float* base, std::int64_t slot_stride) const {
  const Parameter& p = parameters_[static_cast<std::size_t>(index)];
  return {base + p.offset, p.rows, p.cols, slot_stride};
}

ClientMatrix ParameterLayout::matrix(int index, float* base, std::int64_t slot_stride) const {
  const Parameter& p = parameters_[static_cast<std::size_t>(index)];
  return {base + p.offset, p.rows, p.cols, slot_stride};
}

ConstClientMatrix ParameterLayout::stacked_a(int layer, Block block, Adapter adapter, const float* base,
                                             std::int64_t slot_stride) const {
  std::span<const LoraSite> block_sites = sites(layer, block);
  ConstClientMatrix a = matrix(block_sites.front().a_of(adapter), base, slot_stride);
  a.rows *= static_cast<std::int64_t>(block_sites.size());
  return a;
}

ClientMatrix ParameterLayout::stacked_a(int layer, Block block, Adapter adapter, float* base,
                                        std::int64_t slot_stride) const {
  std::span<const LoraSite> block_sites = sites(layer, block);
  ClientMatrix a = matrix(block_sites.front().a_of(adapter), base, slot_stride);
  a.rows *= static_cast<std::int64_t>(block_sites.size());
  return a;
}

View ParameterLayout::part(View rows, Group group) const {
  return rows.columns(static_cast<std::int64_t>(range(group).begin), static_cast<std::int64_t>(range(group).end));
}

ConstView ParameterLayout::part(ConstView rows, Group group) const {
  return rows.columns(static_cast<std::int64_t>(range(group).begin), static_cast<std::int64_t>(range(group).end));
}

void ParameterLayout::draw_lora(std::uint64_t seed, int round, const Parameter& p, std::span<float> part) const {
  if (p.group != Group::lora_a && p.group != Group::personal_a) {
    std::fill(part.begin(), part.end(), 0.0f);
    return;
  }
  // Keyed by the module's name, so that it does not depend on which other groups exist or come first.
  std::string name = p.name;
  if (p.group == Group::personal_a) name.erase(name.rfind("personal."), std::strlen("personal."));
  std::uint32_t name_hash = 2166136261u;
  for (char c : name) name_hash = (name_hash ^ static_cast<unsigned char>(c)) * 16777619u;
  RandomStream stream({seed, Purpose::lora_init, 0, static_cast<std::uint32_t>(round), name_hash});
  uniform(stream, 1.0 / std::sqrt(static_cast<double>(p.cols)), part);
}

void ParameterLayout::restart_lora(std::uint64_t seed, int round, std::span<float> values) const {
  for (const Parameter& p : parameters_)
    if (p.group == Group::lora_a || p.group == Group::lora_b)
      draw_lora(seed, round, p, values.subspan(p.offset, p.size()));
}

void ParameterLayout::truncate_rank(int rank, std::span<float> values) const {
  for (const Parameter& p : parameters_) {
    float* part = values.data() + p.offset;
    if (p.group == Group::lora_a) std::fill(part + rank * p.cols, part + p.rows * p.cols, 0.0f);
    if (p.group == Group::lora_b)
      for (std::int64_t row = 0; row < p.rows; ++row)
        std::fill(part + row * p.cols + rank, part + (row + 1) * p.cols, 0.0f);
  }
}

void ParameterLayout::initialize(std::uint64_t seed, int client, const HeadWeights& pretrained_head,
                                 std::span<float> values) const {
  check(values.size() == size_, "initialize: the buffer has another size than the layout");
  std::fill(values.begin(), values.end(), 0.0f);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    std::span<float> part = values.subspan(p.offset, p.size());
    const auto index = static_cast<int>(i);
    if (p.group == Group::lora_a || p.group == Group::personal_a) {
      draw_lora(seed, 0, p, part);
    } else if (index == bottleneck_down || index == head_p) {
      RandomStream stream(
          {seed, Purpose::module_init, static_cast<std::uint32_t>(client), 0, index == bottleneck_down ? 0u : 1u});
      uniform(stream, 1.0 / std::sqrt(static_cast<double>(p.cols)), part);
    } else if (index == head_weight) {
      check(pretrained_head.rows == p.rows && pretrained_head.cols == p.cols, "initialize: the head's shape differs");
      if (pretrained_head.dtype == DType::f32) {
        std::memcpy(part.data(), pretrained_head.host, p.size() * sizeof(float));
      } else {
        const auto* bits = static_cast<const std::uint16_t*>(pretrained_head.host);
        for (std::size_t j = 0; j < p.size(); ++j) {
          std::uint32_t word = std::uint32_t{bits[j]} << 16;
          std::memcpy(&part[j], &word, sizeof(word));
        }
      }
    }
  }
}

}  // namespace fedpdpo
