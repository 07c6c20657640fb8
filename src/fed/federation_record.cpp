// The round loop: metrics and the run file.
#include <fmt/format.h>

#include <cmath>

#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "keyed_rows.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {
/// What a participant sent and received in this round.
ExchangeFacts Federation::sent(const HostedClient& client) {
  ExchangeFacts facts;
  const AggregationGroup& group = *group_of(client.state.client);
  TrafficRound round{layout_, round_};
  const auto rank_share = [&](int number) {
    if (in_.options.lora_ranks.empty()) return 1.0;
    return static_cast<double>(in_.options.lora_rank_of(number)) / layout_.options().lora_rank;
  };
  round.rank_share = rank_share(client.state.client);
  round.rank_shares = 0;
  round.num_participants = 0;
  for (int number : drawn_) {
    if (assignment_[static_cast<std::size_t>(number)] != group.index()) continue;
    round.rank_shares += rank_share(number);
    ++round.num_participants;
  }
  round.residual = in_.method.moves_backbone() ? residual_size(layout_, in_.config) : 0;
  const Traffic traffic = in_.method.traffic(round);
  facts.bytes_up = traffic.bytes_up(layout_.shared_size(), client.update.bytes);
  facts.compression_error = client.update.compression_error;
  facts.bytes_down = static_cast<double>(4 * traffic.down);
  facts.update_norm = layout_.shared_size() > 0 ? client.update.norm : std::nan("");
  return facts;
}

void Federation::record(RunFile* run_file) {
  const bool trained = round_ > 0;
  std::vector<const std::vector<double>*> rows;
  for (HostedClient& client : clients_.all()) {
    const bool present = trained && participates(client.state.client);
    table_.set_training(client.row, client.state.sums, present);
    if (const AggregationGroup* group = group_of(client.state.client))
      table_.set_exchange(client.row, group->index(), present ? sent(client) : ExchangeFacts{});
    rows.push_back(&client.row);
  }
  table_.record(in_.world, clients_.numbers(), rows, round_, static_cast<int>(in_.partition.clients.size()),
                history_.get());
  record_aggregation_error();
  if (history_ && in_.options.privacy.clip > 0) {
    RdpAccountant accountant(sampling_rate(), in_.options.privacy.noise_multiplier);
    accountant.step(round_);
    const auto row = static_cast<std::size_t>(round_);
    const double delta = in_.options.privacy.delta;
    history_->at("/rounds/privacy/epsilon").row(row)[0] = round_ > 0 ? accountant.epsilon(delta) : 0;
    history_->at("/rounds/privacy/delta").row(row)[0] = delta;
  }
  double total = 0;
  for (const char* phase : phase_names) {
    double seconds = std::string_view(phase) == "total" ? total : seconds_[phase];
    total += seconds;
    in_.world.max(std::span(&seconds, 1));
    if (history_) history_->at(std::string("/timings/") + phase).row(static_cast<std::size_t>(round_))[0] = seconds;
  }
  if (!run_file) return;
  run_file->write_environment({{"aggregation", routes_}});
  run_file->write_history(*history_);
  run_file->flush();
  report_progress();
}

void Federation::record_aggregation_error() {
  KeyedRows own;
  for (const auto& [group, errors] : aggregation_error_)
    if (!errors.empty()) own.add(group, errors);
  const auto by_group = own.gather(in_.world);
  if (!history_ || by_group.empty()) return;
  std::span<double> row = history_->at("/rounds/lora_aggregation_error").row(static_cast<std::size_t>(round_));
  for (std::size_t layer = 0; layer < row.size(); ++layer) {
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

}  // namespace fedpdpo
