// Writing an adapter as PEFT's save_pretrained does. Checked against PEFT 0.21.
#include "fedpdpo/model/peft_adapter.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "fedpdpo/core/error.hpp"
#include "peft_names.hpp"
#include "stored_sites.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

bool has_lora(const ParameterLayout& layout, const std::string& module) {
  return layout.find(module + ".lora_A.weight") >= 0;
}

/// Names that pick exactly the modules with LoRA: PEFT takes a module whose path is a name or ends in one.
std::set<std::string> target_modules(const ModelConfig& config, const ParameterLayout& layout) {
  std::set<std::string> names;
  const auto last_part = [](const std::string& module) { return module.substr(module.rfind('.') + 1); };
  for (std::int64_t layer = layout.lowest_lora_layer(); layer < config.num_layers; ++layer) {
    for (const LinearSite& site : config.sites) {
      const std::string module = module_name(config, layer, site);
      if (!has_lora(layout, module)) continue;
      const std::string last = last_part(site.module);
      const bool all_alike = std::ranges::all_of(config.sites, [&](const LinearSite& other) {
        return last_part(other.module) != last || has_lora(layout, module_name(config, layer, other));
      });
      names.insert(layout.lowest_lora_layer() > 0 ? module : all_alike ? last : site.module);
    }
  }
  return names;
}

json number(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? json(static_cast<std::int64_t>(value)) : json(value);
}

json adapter_config(const ModelConfig& config, const ParameterLayout& layout, const std::string& base) {
  const AdapterOptions& options = layout.options();
  const std::string head = head_module;
  const bool low_rank_head = options.head == HeadKind::lowrank;
  std::set<std::string> targets = target_modules(config, layout);
  json rank_pattern = json::object(), alpha_pattern = json::object();
  if (low_rank_head) {
    targets.insert(head);
    rank_pattern[head] = alpha_pattern[head] = options.head_rank;  // a scale of 1
  }
  json saved = nullptr;
  if (options.head == HeadKind::full) saved = json::array({head});
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"base_model_name_or_path", base},
          {"revision", nullptr},
          {"inference_mode", true},
          {"r", options.lora_rank > 0 ? options.lora_rank : std::max(1, options.head_rank)},
          {"lora_alpha", number(options.lora_alpha)},
          {"lora_dropout", options.lora_dropout},
          // PEFT's word for an adapter without LoRA.
          {"target_modules", targets.empty() ? json("dummy-target-modules") : json(targets)},
          {"rank_pattern", rank_pattern},
          {"alpha_pattern", alpha_pattern},
          {"modules_to_save", saved},
          {"bias", "none"},
          {"fan_in_fan_out", stores_transposed(config)},
          {"init_lora_weights", true},
          {"use_rslora", false},
          {"use_dora", false},
          {"layers_to_transform", nullptr},
          {"layers_pattern", nullptr}};
}

/// The rows of B in the module's order.
std::vector<float> rows_of_module(const ModelConfig& config, const LinearSite& site, std::span<const float> b,
                                  std::int64_t rank) {
  std::vector<float> rows(b.size());
  for (std::int64_t row = 0; row < site.end - site.begin; ++row)
    std::copy_n(b.begin() + row * rank, rank, rows.begin() + config.checkpoint_row(site, row) * rank);
  return rows;
}

}  // namespace

void write_peft_adapter(const std::filesystem::path& folder, const ModelConfig& config, const TrainedModel& model,
                        const std::string& base) {
  check(model.residual.empty(), "an adapter of weights that were moved");
  const ParameterLayout layout = model.layout(config);
  check(model.values.size() == layout.size(), "values of another layout");
  std::vector<TensorToWrite> tensors;
  std::vector<std::vector<float>> reordered;
  const auto put = [&](const std::string& name, const Parameter& p, std::span<const float> values) {
    tensors.push_back(tensor_to_write<float>(peft_prefix + name + ".weight", values, {p.rows, p.cols}));
  };
  const auto parameter = [&](int index) { return layout.parameters()[static_cast<std::size_t>(index)]; };
  for (std::int64_t layer = layout.lowest_lora_layer(); layer < config.num_layers; ++layer) {
    for (const LinearSite& site : config.sites) {
      const std::string module = module_name(config, layer, site);
      if (!has_lora(layout, module)) continue;
      const Parameter a = parameter(layout.find(module + ".lora_A.weight"));
      const Parameter b = parameter(layout.find(module + ".lora_B.weight"));
      put(module + ".lora_A", a, part_of(model.values, a));
      reordered.push_back(rows_of_module(config, site, part_of(model.values, b), b.cols));
      put(module + ".lora_B", b, reordered.back());
    }
  }
  const std::string head = head_module;
  const auto put_head = [&](const std::string& name, int index) {
    if (index >= 0) put(name, parameter(index), part_of(model.values, parameter(index)));
  };
  put_head(head, layout.head_weight);
  put_head(head + ".lora_A", layout.head_p);
  put_head(head + ".lora_B", layout.head_q);
  write_safetensors(folder / adapter_weights_name, tensors, {{"format", "pt"}});
  write_file_atomically(folder / adapter_config_name, adapter_config(config, layout, base).dump(2) + "\n");
}

}  // namespace fedpdpo
