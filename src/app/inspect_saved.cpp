// Trained models on disk, in a few lines each.
#include "inspect_saved.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "exported_folder.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/saved_federation.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/io/safetensors.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "fedpdpo/model/private_modules.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

/// A list that has a line an item.
std::string in_one_line(std::string text) {
  for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) text.replace(at, 1, ", ");
  return text;
}

/// The part of that name; InputError where it is no object, or no array.
json part_of_manifest(const json& manifest, const char* name, bool is_list, const std::filesystem::path& file) {
  const json part = manifest.is_object() ? manifest.value(name, json()) : json();
  if (is_list ? !part.is_array() : !part.is_object())
    throw InputError(file.string(), name, is_list ? "a list" : "an object", part.type_name());
  return part;
}

/// "after round 4 of 4", "in round 3 of 4, before its exchange".
std::string moment_text(int round, const json& facts, const std::filesystem::path& file) {
  const auto fact = [&](const char* name) { return json_optional<std::string>(facts, name, file).value_or("?"); };
  const bool exchanged = fact("stage") == "after-exchange";
  const std::string of = " of " + fact("option.rounds");
  if (fact("moment") == moment_between_rounds) return fmt::format("after round {}{}", round - (exchanged ? 0 : 1), of);
  return fmt::format("in round {}{}, {} its exchange", round, of, exchanged ? "after" : "before");
}

struct FoundCheckpoint {
  std::filesystem::path folder;
  std::optional<CheckpointReader> whole;
  std::string complaint;  ///< why it is not
};

/// Modules of an adapter's LoRA: names without their layers, with ranks, and how many modules have that name.
struct LoraModules {
  std::set<std::string> names;
  std::set<std::int64_t> ranks;
  std::size_t count = 0, parameters = 0;
};

std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string rank_text(const std::set<std::int64_t>& ranks) {
  return ranks.size() == 1 ? fmt::format("rank {}", *ranks.begin())
                           : fmt::format("ranks {} to {}", *ranks.begin(), *ranks.rbegin());
}

/// The part of the origin; an empty object where there is none.
json noted(const json& about, const char* name) {
  const json part = about.value(name, json::object());
  return part.is_object() ? part : json::object();
}

}  // namespace

void inspect_checkpoint(const std::filesystem::path& path) {
  const std::filesystem::path file = path / "manifest.json";
  const json manifest = read_json(file);
  const json facts = part_of_manifest(manifest, "facts", false, file);
  const json files = part_of_manifest(manifest, "files", true, file);
  const auto round = static_cast<int>(json_required<std::int64_t>(manifest, "round", file));
  fmt::print("{}: checkpoint {}\n", path.string(), moment_text(round, facts, file));
  for (const auto& [name, value] : facts.items())
    fmt::print("  {} = {}\n", name, in_one_line(value.is_string() ? value.get<std::string>() : value.dump()));
  for (const json& entry : files)
    fmt::print("  {:>12}  {}\n", bytes_text(json_required<double>(entry, "size", file)),
               json_required<std::string>(entry, "name", file));
}

void inspect_checkpoints(const Communicator& alone, const std::filesystem::path& path) {
  std::vector<FoundCheckpoint> all;
  std::optional<std::filesystem::path> newest;
  for (const std::string& name : checkpoint_names(path)) {
    FoundCheckpoint& found = all.emplace_back();
    found.folder = path / name;
    try {
      found.whole = CheckpointReader::at(alone, found.folder);
      newest = found.folder;
    } catch (const InputError& error) {
      found.complaint = error.what();
    }
  }
  fmt::print("{}: folder of {} checkpoint{}\n", path.string(), all.size(), all.size() == 1 ? "" : "s");
  for (const FoundCheckpoint& found : all) {
    const std::string name = found.folder.filename().string();
    if (found.whole) {
      const json facts = found.whole->facts();
      fmt::print("  {}  {}, whole{}\n", name, moment_text(found.whole->round(), facts, found.whole->manifest()),
                 found.folder == newest ? ": the newest" : "");
    } else {
      fmt::print("  {}  not whole: {}\n", name, found.complaint);
    }
  }
  if (!newest) throw InputError(path.string(), "", "a whole checkpoint", "none");
  inspect_checkpoint(*newest);
}

void inspect_origin(const std::filesystem::path& path) {
  const std::filesystem::path file = path / modules_config_name;
  if (!std::filesystem::exists(file)) return;
  const json about = read_json(file);
  if (!about.is_object()) throw InputError(file.string(), "", "an object", about.type_name());
  const ExportedOrigin origin = exported_origin(path, about);
  const auto text = [&](const json& object, const char* field) {
    return json_optional<std::string>(object, field, file).value_or("?");
  };
  const auto number = [&](const json& object, const char* field) {
    const auto value = json_optional<std::int64_t>(object, field, file);
    return value ? std::to_string(*value) : std::string("?");
  };
  if (const std::string name = origin.name(); !name.empty())
    fmt::print("  {}{}{}{}\n", name, origin.client_name.empty() ? "" : fmt::format(" ({})", origin.client_name),
               origin.merged ? ", merged into its base" : "",
               origin.preferences_swapped ? ", whose preferences were swapped" : "");
  if (!origin.base_path.empty() || !origin.base_hash.empty())
    fmt::print("  base {}, content sha256 {}\n", origin.base_path, origin.base_hash);
  const json bottleneck = noted(about, "bottleneck"), reward = noted(about, "reward_head");
  fmt::print("  bottleneck {}; reward head {}\n",
             bottleneck.empty() ? "none"
                                : fmt::format("{} of width {}", text(bottleneck, "kind"), number(bottleneck, "width")),
             reward.empty()
                 ? "none"
                 : fmt::format("on the response's {}", text(reward, "pool") == "mean" ? "mean" : "last token"));
  const json run = noted(about, "run"), loss = noted(about, "loss");
  if (!run.empty())
    fmt::print("  run of {}, {} clients, after round {} of {}, seed {}; loss {}, beta {}, lambda {}\n",
               text(run, "method"), number(run, "clients"), number(run, "round"), number(run, "rounds"),
               text(run, "seed"), text(loss, "loss"), text(loss, "beta"), text(loss, "lambda"));
}

void inspect_adapter(const std::filesystem::path& path) {
  const std::filesystem::path file = path / adapter_config_name;
  const json config = read_json(file);
  const auto type = json_required<std::string>(config, "peft_type", file);
  const SafetensorsFile weights(path / adapter_weights_name);
  LoraModules lora, head;
  std::size_t saved = 0;
  for (const auto& [name, tensor] : weights.tensors()) {
    const auto size = static_cast<std::size_t>(tensor.num_elements());
    const bool is_a = name.ends_with(".lora_A.weight");
    if (!is_a && !name.ends_with(".lora_B.weight")) {
      saved += size;
      continue;
    }
    const std::string module = name.substr(0, name.size() - std::string_view(".lora_A.weight").size());
    const std::string layers = "base_model.model.";
    const bool of_head = module.starts_with(layers) && module.find('.', layers.size()) == std::string::npos;
    LoraModules& part = of_head ? head : lora;
    part.parameters += size;
    if (!is_a || tensor.shape.empty()) continue;
    ++part.count;
    part.names.insert(module.substr(module.rfind('.') + 1));
    part.ranks.insert(tensor.shape[0]);
  }
  fmt::print("{}: adapter in PEFT's layout, {}\n", path.string(), type);
  if (lora.count > 0)
    fmt::print("  LoRA of {}, alpha {}, on {} ({} modules), {:.3f} M parameters\n", rank_text(lora.ranks),
               json_required<double>(config, "lora_alpha", file), joined(lora.names), lora.count,
               static_cast<double>(lora.parameters) / 1e6);
  else
    fmt::print("  no LoRA in the layers\n");
  const json whole = config.value("modules_to_save", json());
  if (head.count > 0)
    fmt::print("  head: LoRA of {} on {}, {:.3f} M parameters\n", rank_text(head.ranks), joined(head.names),
               static_cast<double>(head.parameters) / 1e6);
  else if (whole.is_array() && !whole.empty())
    fmt::print("  head: its own, {:.3f} M parameters\n", static_cast<double>(saved) / 1e6);
  else
    fmt::print("  head: the base's\n");
  if (!std::filesystem::exists(path / modules_config_name))
    fmt::print("  base {}\n", json_optional<std::string>(config, "base_model_name_or_path", file).value_or("?"));
  inspect_origin(path);
}

}  // namespace fedpdpo
