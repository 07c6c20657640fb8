// The round loop: checkpoints.
#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "checkpoint_names.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/saved_federation.hpp"
#include "fedpdpo/fed/stop_signal.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {
namespace {

/// What a run and the checkpoint that it takes up must agree in: options, and the content of the input wherever it
/// lies.
std::map<std::string, std::string> identity(const FederationInput& in) {
  std::map<std::string, std::string> facts{{"sha256.model", in.model_hash}, {"sha256.data", content_hashes(in.pairs)}};
  for (const auto& [name, value] : describe(in.options))
    if (!is_execution_option(name)) facts["option." + name] = value;
  return facts;
}

/// What those who read the models need beside it: where the input was, and who the clients are.
std::map<std::string, std::string> provenance(const FederationInput& in) {
  std::string names, flipped;
  for (const ClientShare& client : in.partition.clients) {
    names += (names.empty() ? "" : "\n") + client.name;
    flipped += (flipped.empty() ? "" : " ") + std::string(client.flipped ? "1" : "0");
  }
  return {{"path.model", std::filesystem::absolute(in.options.model).lexically_normal().string()},
          {"client-names", names},
          {"flipped", flipped}};
}

/// A list of numbers as a checkpoint says it.
std::string list_text(std::span<const int> numbers) { return fmt::format("{}", fmt::join(numbers, " ")); }

std::vector<int> parse_list(const std::string& text) {
  std::istringstream words(text);
  std::vector<int> numbers;
  for (int number = 0; words >> number;) numbers.push_back(number);
  return numbers;
}

}  // namespace

void Federation::save_or_throw(bool stop, Moment moment) {
  if (!stop) return;
  save(moment);
  throw RequeueRequest(fmt::format("stopped by a signal in round {}; the checkpoint is in {}", round_,
                                   checkpoint_directory(in_.options).string()));
}

void Federation::save(Moment moment) {
  PhaseTimer timer(seconds_["checkpoint"]);
  CheckpointWriter writer(in_.world, checkpoint_directory(in_.options), round_, serial_++);
  clients_.save(writer);
  for (const auto& group : groups_) {
    if (group->communicator().rank() != 0) continue;
    StateFile file;
    file.put("values", std::span<const float>(group->server.values));
    for (const auto& [name, values] : group->server.state) file.put("method." + name, std::span<const float>(values));
    if (!group->server.residual.empty()) file.put("residual", std::span<const float>(group->server.residual));
    // Of a round whose exchange is done and whose record is not.
    if (const auto error = aggregation_error_.find(group->index()); error != aggregation_error_.end())
      file.put("aggregation_error", std::span<const double>(error->second));
    writer.add(group_file(group->index()), file);
  }
  if (history_) {
    StateFile file;
    for (const auto& [path, series] : history_->series()) file.put(path, std::span<const double>(series.values));
    writer.add("history", file);
  }
  std::map<std::string, std::string> facts{
      {"stage", stage_ == Stage::before_exchange ? "before-exchange" : "after-exchange"}};
  facts["moment"] = moment == Moment::end_of_round ? moment_between_rounds : "within-round";
  facts["groups"] = list_text(assignment_);
  facts["participants"] = list_text(drawn_);
  facts["cohort"] = fmt::format("{}", cohort_.cohort);
  facts["micro-rows"] = fmt::format("{}", cohort_.micro_rows);
  facts.merge(provenance(in_));
  facts.merge(identity(in_));
  writer.commit(facts);
}

void Federation::require_same_run(const CheckpointReader& reader) const {
  for (const auto& [name, value] : identity(in_)) {
    auto found = reader.facts().find(name);
    const std::string theirs = found == reader.facts().end() ? "none" : found->second;
    if (theirs != value)
      throw InputError(checkpoint_directory(in_.options).string(), "--" + name.substr(name.find('.') + 1),
                       theirs + " as it was begun with", value);
  }
}

void Federation::restore(const CheckpointReader& reader) {
  round_ = reader.round();
  serial_ = reader.serial() + 1;
  stage_ = reader.facts().at("stage") == "before-exchange" ? Stage::before_exchange : Stage::after_exchange;
  clients_.load(reader);
  form_groups(parse_list(reader.facts().at("groups")));
  drawn_ = parse_list(reader.facts().at("participants"));
  // Before the exchange the groups are those of the draw, which is then made again.
  resumed_ = stage_ == Stage::after_exchange;
  for (const auto& group : groups_) {
    const SafetensorsFile file = reader.open(group_file(group->index()));
    const std::int64_t shape[] = {static_cast<std::int64_t>(layout_.shared_size())};
    const auto values = file.read<float>("values", shape);
    group->server.values.assign(values.begin(), values.end());
    for (const auto& [name, tensor] : file.tensors()) {
      if (name.rfind("method.", 0) != 0) continue;
      const auto state = file.read<float>(name);
      group->server.state[name.substr(7)].assign(state.begin(), state.end());
    }
    if (file.contains("residual")) {
      const auto residual = file.read<float>("residual");
      group->server.residual.assign(residual.begin(), residual.end());
    }
    if (file.contains("aggregation_error") && group->communicator().rank() == 0) {
      const auto errors = file.read<double>("aggregation_error");
      aggregation_error_[group->index()].assign(errors.begin(), errors.end());
    }
    upload_server(*group);
  }
  if (history_) {
    const SafetensorsFile file = reader.open("history");
    for (const auto& [path, series] : std::map(history_->series())) {
      const auto values = file.read<double>(path);
      if (values.size() != series.values.size())
        throw InputError(file.path().string(), path, fmt::format("{} numbers", series.values.size()),
                         fmt::format("{}", values.size()));
      std::copy(values.begin(), values.end(), history_->at(path).values.begin());
    }
  }
  log_info(fmt::format("resumed in round {} from {}", round_, checkpoint_directory(in_.options).string()));
}

}  // namespace fedpdpo
