// Reading models out of a checkpoint.
#include "fedpdpo/fed/saved_federation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "checkpoint_names.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo {
namespace {

std::unique_ptr<FederatedMethod> make_method(const CheckpointReader& reader, const RunOptions& options) {
  const MethodInfo* info = find_method(options.method);
  if (!info)
    throw InputError(reader.manifest().string(), "facts.option.method", "a method of this program", options.method);
  return info->make(options);
}

/// A list of whole numbers in [least, most], one a client.
std::vector<int> client_numbers(const CheckpointReader& reader, const std::string& name, int num_clients, int least,
                                int most) {
  std::istringstream words(reader.fact(name));
  std::vector<int> numbers;
  for (int number = 0; words >> number;) numbers.push_back(number);
  const bool good = std::cmp_equal(numbers.size(), num_clients) && words.eof() &&
                    std::ranges::all_of(numbers, [=](int n) { return n >= least && n <= most; });
  if (!good)
    throw InputError(reader.manifest().string(), "facts." + name, fmt::format("{} numbers, one a client", num_clients),
                     reader.fact(name));
  return numbers;
}

/// Copies values by the parameters' names, LoRA's from the given one of the two.
std::vector<float> carry(const ParameterLayout& from, std::span<const float> values, Adapter adapter,
                         const ParameterLayout& to) {
  std::vector<float> carried(to.size());
  for (const Parameter& target : to.parameters()) {
    std::string name = target.name;
    const bool lora = target.group == Group::lora_a || target.group == Group::lora_b;
    if (lora && adapter == Adapter::personal) name.insert(name.rfind("weight"), "personal.");
    const int index = from.find(name);
    check(index >= 0, "a parameter that the run's layout lacks: " + name);
    std::ranges::copy(part_of(values, from.parameters()[static_cast<std::size_t>(index)]),
                      part_to_write(carried, target).begin());
  }
  return carried;
}

}  // namespace

SavedFederation::SavedFederation(CheckpointReader reader, RunOptions options, const ModelConfig& config)
    : reader_(std::move(reader)),
      options_(std::move(options)),
      config_(config),
      method_(make_method(reader_, options_)),
      layout_(config, options_.adapter, method_->shared_groups()),
      at_end_(reader_.fact("moment") == moment_between_rounds) {
  const int num_clients = options_.partition.num_clients;
  group_of_client_ = client_numbers(reader_, "groups", num_clients, -1, num_clients - 1);
  flipped_ = client_numbers(reader_, "flipped", num_clients, 0, 1);
  for (const int group : group_of_client_) num_groups_ = std::max(num_groups_, group + 1);
  std::istringstream names(reader_.fact("client-names"));
  for (std::string name; std::getline(names, name);) names_.push_back(name);
  if (std::cmp_not_equal(names_.size(), num_clients))
    throw InputError(reader_.manifest().string(), "facts.client-names", fmt::format("{} lines", num_clients),
                     fmt::format("{}", names_.size()));
  rounds_done_ = reader_.fact("stage") == "after-exchange" ? reader_.round() : std::max(0, reader_.round() - 1);
}

std::string SavedFederation::refuses_client(int client) const {
  if (group_of(client) < 0) return fmt::format("client {} is a new one, which never trained", client);
  if (!at_end_)
    return fmt::format("it was made by a stop within round {}, whose models are half done: resume the run to its end",
                       reader_.round());
  if (options_.adapter.personal_lora == PersonalLora::feddpa)
    return "feddpa weighs a client's two LoRAs by the likeness of every instance to its data, which no adapter says; "
           "--client shared is the LoRA that all share";
  return "";
}

std::string SavedFederation::refuses_shared() const {
  if (layout_.shared_size() == 0) return fmt::format("{} shares nothing: there is no shared model", options_.method);
  const std::vector<Phase> plan = method_->plan_round(1, {{1, {Group::lora_a, Group::lora_b}}});
  const std::vector<Phase> next = method_->plan_round(2, {{1, {Group::lora_a, Group::lora_b}}});
  for (const Group group : {Group::lora_a, Group::lora_b}) {
    if (!layout_.has(group) || layout_.is_shared(group)) continue;
    for (const auto* phases : {&plan, &next})
      for (const Phase& phase : *phases)
        if (std::ranges::count(phase.trainable, group) > 0)
          return fmt::format("with {} LoRA's {} is each client's own: there is no shared model", options_.method,
                             group == Group::lora_a ? "A" : "B");
  }
  return "";
}

std::vector<float> SavedFederation::residual_of(int group) const {
  if (!method_->moves_backbone()) return {};
  const SafetensorsFile file = reader_.open(group_file(group));
  const std::int64_t shape[] = {static_cast<std::int64_t>(residual_size(layout_, config_))};
  const auto residual = file.read<float>("residual", shape);
  return {residual.begin(), residual.end()};
}

TrainedModel SavedFederation::client_model(int client) const {
  check(refuses_client(client).empty(), "a model that is refused");
  TrainedModel model{options_.adapter};
  model.options.personal_lora = PersonalLora::none;
  const SafetensorsFile file = reader_.open(client_file(client));
  const std::int64_t shape[] = {static_cast<std::int64_t>(layout_.size())};
  const Adapter adapter = options_.adapter.personal_lora == PersonalLora::none ? Adapter::shared : Adapter::personal;
  const ParameterLayout layout = model.layout(config_);
  model.values = carry(layout_, file.read<float>("values", shape), adapter, layout);
  // A LoRA of a rank of its own has a scale of its own.
  if (!options_.lora_ranks.empty()) {
    const auto weight =
        static_cast<float>(options_.adapter.lora_rank) / static_cast<float>(options_.lora_rank_of(client));
    const ParameterRange b = layout.range(Group::lora_b);
    for (std::size_t i = b.begin; i < b.end; ++i) model.values[i] *= weight;
  }
  model.residual = residual_of(group_of(client));
  return model;
}

TrainedModel SavedFederation::shared_model(int group) const {
  check(refuses_shared().empty(), "a model that is refused");
  TrainedModel model{options_.adapter};
  AdapterOptions& modules = model.options;
  modules.personal_lora = PersonalLora::none;
  if (!layout_.is_shared(Group::head)) modules.head = HeadKind::frozen;
  if (!layout_.is_shared(Group::bottleneck)) modules.bottleneck = 0;
  if (!layout_.is_shared(Group::reward)) modules.reward_head = false;
  const SafetensorsFile file = reader_.open(group_file(group));
  const std::int64_t shape[] = {static_cast<std::int64_t>(layout_.shared_size())};
  // A factor that never moves is where every client's started.
  std::vector<float> values(layout_.size());
  layout_.restart_lora(options_.seed(), 0, values);
  std::ranges::copy(file.read<float>("values", shape), values.begin());
  model.values = carry(layout_, values, Adapter::shared, model.layout(config_));
  model.residual = residual_of(group);
  return model;
}

}  // namespace fedpdpo
