// The round loop: metrics, the run file, checkpoints.
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/stop_signal.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {
namespace {

std::string group_file(int group) { return fmt::format("group-{:05}", group); }

/// Options that do not change what a run computes: a checkpoint of other values is taken up all the same.
bool is_execution_option(const std::string& name) {
  static const char* const names[] = {
      "out",   "overwrite", "resume", "checkpoint-every", "checkpoint-dir", "threads", "reference-cache",
      "model", "data",      "config"};
  for (const char* known : names)
    if (name == known) return true;
  return false;
}

/// What a run and the checkpoint that it takes up must agree in: options, and the content of the input wherever it
/// lies.
std::map<std::string, std::string> identity(const FederationInput& in) {
  std::string data;
  for (const PairFile& file : in.pairs.files) data += (data.empty() ? "" : " ") + file.content_hash;
  std::map<std::string, std::string> facts{{"sha256.model", in.model_hash}, {"sha256.data", data}};
  for (const auto& [name, value] : describe(in.options))
    if (!is_execution_option(name)) facts["option." + name] = value;
  return facts;
}

}  // namespace

void Federation::record(RunFile* run_file) {
  const bool trained = round_ > 0;
  std::vector<const std::vector<double>*> rows;
  for (HostedClient& client : clients_.all()) {
    const bool present = trained && participates(client.state.client);
    const Traffic traffic = present ? in_.method.traffic(layout_, round_) : Traffic{};
    table_.set_training(client.row, client.state.sums, present, static_cast<double>(traffic.up * sizeof(float)),
                        static_cast<double>(traffic.down * sizeof(float)));
    rows.push_back(&client.row);
  }
  table_.record(in_.world, clients_.numbers(), rows, round_, static_cast<int>(in_.partition.clients.size()),
                history_.get());
  record_aggregation_error();
  double total = 0;
  for (const char* phase : phase_names) {
    double seconds = std::string_view(phase) == "total" ? total : seconds_[phase];
    total += seconds;
    in_.world.max(std::span(&seconds, 1));
    if (history_) history_->at(std::string("/timings/") + phase).row(static_cast<std::size_t>(round_))[0] = seconds;
  }
  if (!run_file) return;
  run_file->write_history(*history_);
  run_file->flush();
  report_progress();
}

void Federation::record_aggregation_error() {
  std::vector<double> own;
  for (const auto& [group, errors] : aggregation_error_) {
    if (errors.empty()) continue;
    own.push_back(group);
    own.insert(own.end(), errors.begin(), errors.end());
  }
  const auto all = in_.world.gather(std::as_bytes(std::span(own)), 0);
  if (!history_) return;
  const auto layers = static_cast<std::size_t>(in_.config.num_layers);
  std::map<int, std::vector<double>> by_group;
  for (const auto& bytes : all) {
    std::vector<double> numbers(bytes.size() / sizeof(double));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
    for (std::size_t at = 0; at < numbers.size(); at += layers + 1)
      by_group[static_cast<int>(numbers[at])].assign(numbers.begin() + static_cast<std::ptrdiff_t>(at) + 1,
                                                     numbers.begin() + static_cast<std::ptrdiff_t>(at + 1 + layers));
  }
  if (by_group.empty()) return;
  std::span<double> row = history_->at("/rounds/lora_aggregation_error").row(static_cast<std::size_t>(round_));
  for (std::size_t layer = 0; layer < layers; ++layer) {
    double sum = 0;
    for (const auto& [group, errors] : by_group) sum += errors[layer];
    row[layer] = sum / static_cast<double>(by_group.size());
  }
}

void Federation::report_progress() const {
  const auto row = static_cast<std::size_t>(round_);
  const auto number = [&](const std::string& path) {
    const auto& series = history_->series();
    auto found = series.find(path);
    return found == series.end() ? std::nan("") : found->second.row(row)[0];
  };
  std::string line = fmt::format("round {}/{}", round_, in_.options.rounds);
  if (round_ > 0) line += fmt::format("  loss {:.4f}", number("/rounds/train/loss"));
  for (Split split : splits_) {
    if (split == Split::train || !is_evaluated(round_)) continue;
    const std::string name = split_names[static_cast<std::size_t>(split)];
    const double before = number("/rounds/" + name + "/before/accuracy");
    const double after = number("/rounds/" + name + "/after/accuracy");
    line += fmt::format("  {} accuracy {:.3f}", name, after);
    if (layout_.shared_size() > 0 && round_ > 0) line += fmt::format(" (before averaging {:.3f})", before);
  }
  const double seconds = number("/timings/total");
  line += fmt::format("  {:.1f} s", seconds);
  const int left = in_.options.rounds - round_;
  if (round_ > 0 && left > 0) line += fmt::format("  about {:.0f} s left", seconds * left);
  log_info(line);
}

FinalMargins Federation::gather_margins() {
  FinalMargins margins;
  bool wanted = false;
  for (Split split : splits_) wanted = wanted || split == Split::test;
  if (!wanted) return margins;
  std::vector<double> own;
  for (const HostedClient& client : clients_.all()) {
    // After a resume at the very end nothing was evaluated in this process.
    if (!last_test_.contains(client.state.client))
      last_test_[client.state.client] =
          *evaluate(in_.pairs, policy_, clients_.buffers().parameters(), client.state.slot, loss_,
                    client.data.of(Split::test), in_.options.micro_rows, nullptr);
    const Evaluation& e = last_test_[client.state.client];
    own.push_back(client.state.client);
    own.push_back(static_cast<double>(e.margin.size()));
    for (const auto* list : {&e.margin, &e.margin_implicit, &e.margin_explicit})
      own.insert(own.end(), list->begin(), list->end());
  }
  const auto all = in_.world.gather(std::as_bytes(std::span(own)), 0);
  if (in_.world.rank() != 0) return margins;
  std::map<int, std::vector<double>> by_client;
  for (const auto& bytes : all) {
    std::vector<double> numbers(bytes.size() / sizeof(double));
    std::memcpy(numbers.data(), bytes.data(), bytes.size());
    for (std::size_t at = 0; at < numbers.size();) {
      const auto n = 3 * static_cast<std::size_t>(numbers[at + 1]);
      const auto begin = numbers.begin() + static_cast<std::ptrdiff_t>(at) + 2;
      by_client[static_cast<int>(numbers[at])].assign(begin, begin + static_cast<std::ptrdiff_t>(n));
      at += 2 + n;
    }
  }
  for (const auto& [client, numbers] : by_client) {
    const auto& pairs =
        in_.partition.clients[static_cast<std::size_t>(client)].pairs[static_cast<std::size_t>(Split::test)];
    const std::size_t n = numbers.size() / 3;
    check(n == pairs.size(), "one margin a test pair");
    for (std::size_t i = 0; i < n; ++i) {
      margins.client.push_back(client);
      margins.pair.push_back(pairs[i]);
      margins.margin.push_back(numbers[i]);
      margins.margin_implicit.push_back(numbers[n + i]);
      margins.margin_explicit.push_back(numbers[2 * n + i]);
    }
  }
  return margins;
}

std::filesystem::path Federation::checkpoint_directory() const {
  if (!in_.options.checkpoint_dir.empty()) return in_.options.checkpoint_dir;
  std::filesystem::path path = in_.options.out;
  return path.replace_extension("ckpt");
}

void Federation::save_or_throw(bool stop) {
  if (!stop) return;
  save();
  throw RequeueRequest(
      fmt::format("stopped by a signal in round {}; the checkpoint is in {}", round_, checkpoint_directory().string()));
}

void Federation::save() {
  PhaseTimer timer(seconds_["checkpoint"]);
  CheckpointWriter writer(in_.world, checkpoint_directory(), round_, serial_++);
  clients_.save(writer);
  for (const auto& group : groups_) {
    if (group->communicator().rank() != 0) continue;
    StateFile file;
    file.put("values", std::span<const float>(group->server.values));
    for (const auto& [name, values] : group->server.state) file.put("method." + name, std::span<const float>(values));
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
  facts.merge(identity(in_));
  writer.commit(facts);
}

void Federation::restore() {
  const auto reader = CheckpointReader::find(in_.world, checkpoint_directory());
  if (!reader) return;
  for (const auto& [name, value] : identity(in_)) {
    auto found = reader->facts().find(name);
    const std::string theirs = found == reader->facts().end() ? "none" : found->second;
    if (theirs != value)
      throw InputError(checkpoint_directory().string(), "--" + name.substr(name.find('.') + 1),
                       theirs + " as it was begun with", value);
  }
  round_ = reader->round();
  serial_ = reader->serial() + 1;
  stage_ = reader->facts().at("stage") == "before-exchange" ? Stage::before_exchange : Stage::after_exchange;
  clients_.load(*reader);
  for (const auto& group : groups_) {
    const SafetensorsFile file = reader->open(group_file(group->index()));
    const std::int64_t shape[] = {static_cast<std::int64_t>(layout_.shared_size())};
    const auto values = file.read<float>("values", shape);
    group->server.values.assign(values.begin(), values.end());
    for (const auto& [name, tensor] : file.tensors()) {
      if (name.rfind("method.", 0) != 0) continue;
      const auto state = file.read<float>(name);
      group->server.state[name.substr(7)].assign(state.begin(), state.end());
    }
    if (file.contains("aggregation_error") && group->communicator().rank() == 0) {
      const auto errors = file.read<double>("aggregation_error");
      aggregation_error_[group->index()].assign(errors.begin(), errors.end());
    }
    upload_server(*group);
  }
  if (history_) {
    const SafetensorsFile file = reader->open("history");
    for (const auto& [path, series] : std::map(history_->series())) {
      const auto values = file.read<double>(path);
      if (values.size() != series.values.size())
        throw InputError(file.path().string(), path, fmt::format("{} numbers", series.values.size()),
                         fmt::format("{}", values.size()));
      std::copy(values.begin(), values.end(), history_->at(path).values.begin());
    }
  }
  log_info(fmt::format("resumed in round {} from {}", round_, checkpoint_directory().string()));
}

}  // namespace fedpdpo
