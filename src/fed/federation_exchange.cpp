// The exchange of a round: results to the groups' averages, payloads, the server rule, and the server's state back to
// its clients.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "fedpdpo/core/finite.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/aggregation_error.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {

LocalStep Federation::local_step(ClientState& state, View values, View gradient) {
  static const std::map<std::string, Tensor> nothing;
  const AggregationGroup& group = *group_of(state.client);
  const auto server_state = server_state_on_device_.find(group.index());
  const OptimizerOptions& optimizer = in_.options.optimizer;
  const double factor = rate_factor(optimizer, round_, in_.options.rounds);
  return {in_.backend,
          layout_,
          state.client,
          round_,
          state.steps_done,
          optimizer.lr_shared * factor,
          optimizer.lr_private * factor,
          layout_.shared_size() > 0 ? ConstView(server_on_device_.at(group.index()).view()) : ConstView{},
          values,
          gradient,
          state.method_state,
          server_state == server_state_on_device_.end() ? nothing : server_state->second};
}

/// The server's values and arrays to the device.
void Federation::upload_server(const AggregationGroup& group) {
  if (layout_.shared_size() == 0) return;
  const auto upload = [&](Tensor& tensor, std::span<const float> values) {
    if (!tensor) tensor = Tensor(in_.backend, 1, static_cast<std::int64_t>(values.size()));
    in_.backend.copy_to_device(tensor.view().data, values.data(), values.size_bytes());
  };
  upload(server_on_device_[group.index()], group.server.values);
  for (const auto& [name, values] : group.server.state) upload(server_state_on_device_[group.index()][name], values);
  if (group.server.residual.empty()) return;
  auto found = backbones_.find(group.index());
  if (found == backbones_.end())
    found = backbones_.try_emplace(group.index(), in_.backend, in_.config, in_.weights).first;
  found->second.move(layout_, group.server.residual);
}

/// The same, and the server's values to the group's clients.
void Federation::distribute(const AggregationGroup& group) {
  upload_server(group);
  std::vector<HostedClient*> own;
  for (int client : group.clients()) {
    HostedClient* hosted = clients_.find(client);
    if (!hosted) continue;
    if (layout_.shared_size() > 0)
      clients_.set_shared(*hosted, group.server.values, server_on_device_.at(group.index()).view());
    own.push_back(hosted);
  }
  if (!personalization_ || !personalization_->acts_after_exchange() || round_ == 0) return;
  clients_.visit(own, Access::change_values, [&](HostedClient& client) {
    personalization_->after_exchange(local_step(client.state, clients_.buffers().values(client.state), View{}));
    return true;
  });
}

/// Whether this round somebody looks at single clients' results, or changes them, on the host.
bool Federation::needs_results_on_host() const {
  const auto sums_on_device = [](const auto& group) { return !group || group->sums_on_device(); };
  return !std::all_of(groups_.begin(), groups_.end(), sums_on_device) || !sums_on_device(everyone_) ||
         !needs_host_sums(in_.options).empty() || finds_groups() || records_aggregation_error() ||
         in_.method.moves_backbone();
}

/// y_i of the hosted participants as the server gets them, and what sending them took.
std::vector<Federation::Result> Federation::collect_results() {
  const bool on_host = needs_results_on_host(), changed = !needs_host_sums(in_.options).empty();
  const std::size_t size = layout_.shared_size();
  const Tensor work(in_.backend, 2, static_cast<std::int64_t>(size));
  std::vector<Result> results;
  for (int number : present_) {
    HostedClient& client = *clients_.find(number);
    Result& result = results.emplace_back(Result{&client, {}, clients_.shared_on_device(client)});
    if (on_host || !result.on_device.data) {
      result.values.resize(size);
      clients_.get_shared(client, result.values);
    }
    client.update = {4 * size, 0, 0};
    measure_update(result, work.view());
    if (changed) compress_and_clip(result);
  }
  return results;
}

/// Changes a result on the host, whereupon only that counts.
void Federation::compress_and_clip(Result& result) {
  const RunOptions& o = in_.options;
  HostedClient& client = *result.client;
  result.on_device = {};
  const std::vector<float>& x = group_of(client.state.client)->server.values;
  if (o.compression.kind != Compression::none) {
    const View memory = local_step(client.state, View{}, View{}).client_array("compression.memory");
    std::vector<float> host(result.values.size());
    in_.backend.copy_to_host(host.data(), memory.data, host.size() * sizeof(float));
    const Compressed sent = compress_update(o.compression, layout_.shared_blocks(), x, result.values, host);
    in_.backend.copy_to_device(memory.data, host.data(), host.size() * sizeof(float));
    client.update.bytes = sent.bytes;
    client.update.compression_error = sent.error;
    if (!sent.finite) client.state.sums.finite = false;
  }
  const double norm = clip_update(x, result.values, o.privacy.clip);
  if (o.compression.kind != Compression::none) client.update.norm = norm;  // of what is sent
}

/// ||y - x|| and whether y is finite, by the backend wherever y lies: the record does not depend on the place.
void Federation::measure_update(const Result& result, View work) {
  HostedClient& client = *result.client;
  const View difference = work.row_range(0, 1), staged = work.row_range(1, 2);
  ConstView y = result.on_device;
  if (!y.data) {
    in_.backend.copy_to_device(staged.data, result.values.data(), result.values.size() * sizeof(float));
    y = staged;
  }
  const ConstView x = server_on_device_.at(group_of(client.state.client)->index()).view();
  in_.backend.axpy(1.0f, y, difference, Write::overwrite);
  in_.backend.axpy(-1.0f, x, difference, Write::accumulate);
  client.update.norm = std::sqrt(in_.backend.squared_norm(difference));
  // A difference may be beyond float where y is not.
  if (!std::isfinite(client.update.norm) && !std::isfinite(in_.backend.squared_norm(y)))
    client.state.sums.finite = false;
}

/// The results of a group's clients (of all clients for nullptr). Under differential privacy all count alike.
/// Another group's exchange may have brought clients to the device in these ones' place: where a result is not on the
/// host it is looked for anew.
std::vector<Contribution> Federation::contributions(const AggregationGroup* group, std::span<Result> results) {
  std::vector<Contribution> own;
  for (Result& result : results) {
    const int number = result.client->state.client;
    if (group && !std::binary_search(group->clients().begin(), group->clients().end(), number)) continue;
    double weight = static_cast<double>(result.client->data.of(Split::train).size());
    if (in_.method.data_scope() == DataScope::pooled) weight = static_cast<double>(pool_.size());
    if (in_.options.privacy.clip > 0) weight = 1;
    if (result.on_device.data) result.on_device = clients_.shared_on_device(*result.client);
    if (!result.on_device.data && result.values.empty()) {
      result.values.resize(layout_.shared_size());
      clients_.get_shared(*result.client, result.values);
    }
    own.push_back({number, weight, result.values, result.client->state.sums.finite, result.client->state.lora_weight,
                   result.on_device});
  }
  return own;
}

void Federation::exchange() {
  if (layout_.shared_size() == 0) return;
  PhaseTimer timer(seconds_["reduce"]);
  std::vector<Result> results = collect_results();
  if (auto wanted = wanted_groups(results)) regroup(std::move(*wanted));
  const std::vector<float> common = average_common(results);
  for (const auto& group : groups_) average_group(*group, results, common);
}

/// The average over the clients of all groups of what the method averages so; empty where there is nothing.
std::vector<float> Federation::average_common(std::span<Result> results) {
  if (!everyone_) return {};
  std::vector<Contribution> own = contributions(nullptr, results);
  std::vector<float> average(everyone_->size());
  for (Contribution& c : own) {
    if (!c.values.empty()) c.values = c.values.first(average.size());
    if (c.on_device.data) c.on_device = c.on_device.columns(0, static_cast<std::int64_t>(average.size()));
  }
  return everyone_->average(own, average).num_finite > 0 ? average : std::vector<float>{};
}

/// Whether this round's average of a group leaves something out that is to be recorded: a server that moves the frozen
/// weights makes no such error.
bool Federation::records_aggregation_error() const {
  const std::optional<int>& every = in_.options.aggregation_error_every;
  const bool wanted = every ? *every > 0 && round_ % *every == 0 : is_evaluated(round_);
  return wanted && layout_.has(Group::lora_a) && layout_.is_shared(Group::lora_a) && layout_.is_shared(Group::lora_b) &&
         !in_.method.moves_backbone();
}

void Federation::average_group(AggregationGroup& group, std::span<Result> results, std::span<const float> common) {
  std::vector<Contribution> own = contributions(&group, results);
  std::vector<float> average(group.server.values);
  const Reduced reduced = group.average(own, average);
  for (const Contribution& c : own) {
    if (c.finite) continue;
    clients_.find(c.client)->state.sums.finite = false;
    log_warning(fmt::format("round {}: the update of {} is not finite; it is left out of the round", round_,
                            in_.partition.clients[static_cast<std::size_t>(c.client)].name));
  }
  if (reduced.num_finite > 0 && records_aggregation_error())
    aggregation_error_[group.index()] =
        gather_aggregation_error(in_.backend, group, layout_, static_cast<int>(in_.config.num_layers), own, average);
  privatize(group, reduced, average);
  std::copy(common.begin(), common.end(), average.begin());
  const auto means = average_payloads(group, own);
  if (reduced.num_finite > 0 || in_.options.privacy.clip > 0) {
    const ServerRound round{
        layout_, round_, in_.options.seed(), static_cast<int>(group.clients().size()), reduced.num_finite,
        average, means};
    in_.method.update_server(group.server, round);
    if (in_.method.moves_backbone()) {
      group.server.residual.resize(residual_size(layout_, in_.config));
      const auto loras = gather_loras(group, own, average.size());
      in_.method.move_backbone(group.server, round, weighted(loras));
    }
  }
  distribute(group);
}

/// x + (1 / (q N)) sum of clipped updates + noise: the denominator does not tell who took part.
void Federation::privatize(const AggregationGroup& group, const Reduced& reduced, std::span<float> average) const {
  const PrivacyOptions& privacy = in_.options.privacy;
  if (privacy.clip <= 0) return;
  const double expected = sampling_rate() * static_cast<double>(group.clients().size());
  const double factor = reduced.num_finite / expected;
  for (std::size_t i = 0; i < average.size(); ++i) {
    const auto x = static_cast<double>(group.server.values[i]);
    average[i] = static_cast<float>(x + factor * (static_cast<double>(average[i]) - x));
  }
  add_noise(average, privacy.noise_multiplier * privacy.clip / expected, in_.options.seed(), round_, group.index());
}

std::map<std::string, std::vector<float>> Federation::average_payloads(const AggregationGroup& group,
                                                                       std::span<const Contribution> own) {
  int shared_steps = 0;
  for (const Phase& phase : phases(round_)) shared_steps += trains(phase, true) ? phase.steps : 0;
  std::vector<HostedClient*> counted;
  for (const Contribution& c : own)
    if (c.finite && in_.method.finishes_local()) counted.push_back(clients_.find(c.client));
  clients_.visit(counted, Access::change_values, [&](HostedClient& client) {
    LocalStep end = local_step(client.state, clients_.buffers().values(client.state), View{});
    end.step = shared_steps;
    in_.method.finish_local(end);
    return true;
  });
  std::map<std::string, std::vector<float>> means;
  for (const std::string& name : in_.method.payloads()) {
    std::vector<std::vector<float>> arrays;
    std::vector<Contribution> terms;
    for (const Contribution& c : own) {
      if (!c.finite) continue;
      const View array = clients_.find(c.client)->state.method_state.at(name).view();
      terms.push_back({c.client, 1.0, {}, true, 1, array});
      arrays.emplace_back();
      if (group.sums_on_device()) continue;
      arrays.back().resize(static_cast<std::size_t>(array.size()));
      in_.backend.copy_to_host(arrays.back().data(), array.data, arrays.back().size() * sizeof(float));
    }
    for (std::size_t i = 0; i < terms.size(); ++i) terms[i].values = arrays[i];
    means[name].resize(layout_.shared_size());
    group.average(terms, means[name]);
  }
  return means;
}

}  // namespace fedpdpo
