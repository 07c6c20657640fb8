// Bottleneck and reward head on disk.
#include "fedpdpo/model/private_modules.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

constexpr const char* format_name = "fedpdpo-modules";
constexpr std::int64_t format_version = 1;

bool is_private_module(const Parameter& p) { return p.group == Group::bottleneck || p.group == Group::reward; }

std::vector<std::int64_t> stored_shape(const Parameter& p) {
  return p.rows == 1 ? std::vector{p.cols} : std::vector{p.rows, p.cols};
}

template <class Enum>
Enum word(const json& object, const char* field, std::initializer_list<std::pair<const char*, Enum>> words,
          const std::filesystem::path& file) {
  const auto found = json_required<std::string>(object, field, file);
  std::string known;
  for (const auto& [name, value] : words) {
    if (found == name) return value;
    known += (known.empty() ? "" : " or ") + std::string(name);
  }
  throw InputError(file.string(), field, known, found);
}

}  // namespace

bool has_private_modules(const TrainedModel& model) {
  return model.options.bottleneck > 0 || model.options.reward_head;
}

void write_private_modules(const std::filesystem::path& folder, const ModelConfig& config, const TrainedModel& model,
                           json about) {
  const AdapterOptions& o = model.options;
  about["format"] = format_name;
  about["version"] = format_version;
  about["bottleneck"] = nullptr;
  about["reward_head"] = nullptr;
  if (o.bottleneck > 0)
    about["bottleneck"] = {{"kind", o.bottleneck_kind == BottleneckKind::gated ? "gated" : "residual"},
                           {"width", o.bottleneck},
                           {"activation", "gelu"}};
  if (o.reward_head) about["reward_head"] = {{"pool", o.reward_pool == RewardPool::mean ? "mean" : "last"}};
  write_file_atomically(folder / modules_config_name, about.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
  if (!has_private_modules(model)) return;
  const ParameterLayout layout = model.layout(config);
  std::vector<TensorToWrite> tensors;
  for (const Parameter& p : layout.parameters())
    if (is_private_module(p))
      tensors.push_back(tensor_to_write<float>(p.name, part_of(model.values, p), stored_shape(p)));
  write_safetensors(folder / modules_weights_name, tensors, {{"format", "pt"}});
}

std::optional<json> add_private_modules(const std::filesystem::path& folder, const ModelConfig& config,
                                        TrainedModel& model) {
  const std::filesystem::path file = folder / modules_config_name;
  if (!std::filesystem::exists(file)) return std::nullopt;
  json about = read_json(file);
  const auto format = json_required<std::string>(about, "format", file);
  if (format != format_name) throw InputError(file.string(), "format", format_name, format);
  const auto version = json_required<std::int64_t>(about, "version", file);
  if (version != format_version)
    throw InputError(file.string(), "version", std::to_string(format_version), std::to_string(version));
  check(!has_private_modules(model), "the model has private modules");
  const ParameterLayout before = model.layout(config);
  AdapterOptions& o = model.options;
  if (const json bottleneck = about.value("bottleneck", json()); !bottleneck.is_null()) {
    const auto width = json_required<std::int64_t>(bottleneck, "width", file);
    if (width < 1 || width > (1 << 20))
      throw InputError(file.string(), "bottleneck.width", "a width from 1 to 2^20", std::to_string(width));
    o.bottleneck = static_cast<int>(width);
    o.bottleneck_kind = word<BottleneckKind>(
        bottleneck, "kind", {{"residual", BottleneckKind::residual}, {"gated", BottleneckKind::gated}}, file);
    word<int>(bottleneck, "activation", {{"gelu", 0}}, file);
  }
  if (const json reward = about.value("reward_head", json()); !reward.is_null()) {
    o.reward_head = true;
    o.reward_pool = word<RewardPool>(reward, "pool", {{"last", RewardPool::last}, {"mean", RewardPool::mean}}, file);
  }
  if (!has_private_modules(model)) return about;
  const ParameterLayout layout = model.layout(config);
  // What the file holds bounds what is asked for.
  const SafetensorsFile stored(folder / modules_weights_name);
  for (const Parameter& p : layout.parameters())
    if (is_private_module(p)) static_cast<void>(stored.read<float>(p.name, stored_shape(p)));
  std::vector<float> values(layout.size());
  for (const Parameter& p : layout.parameters()) {
    const std::span<float> to = part_to_write(values, p);
    if (is_private_module(p)) {
      std::ranges::copy(stored.read<float>(p.name, stored_shape(p)), to.begin());
    } else {
      const auto index = static_cast<std::size_t>(before.find(p.name));
      std::ranges::copy(part_of(model.values, before.parameters()[index]), to.begin());
    }
  }
  model.values = std::move(values);
  return about;
}

}  // namespace fedpdpo
