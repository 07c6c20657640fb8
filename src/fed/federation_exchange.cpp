// The exchange of a round: results to the groups' averages, payloads, the server rule, and the server's state back to
// its clients.
#include <fmt/format.h>

#include <algorithm>

#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/aggregation_error.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {

LocalStep Federation::local_step(ClientState& state, View values, View gradient) {
  static const std::map<std::string, Tensor> nothing;
  const AggregationGroup& group = *group_of(state.client);
  const auto server_state = server_state_on_device_.find(group.index());
  const double rate = in_.options.optimizer.lr_shared * rate_factor(in_.options.optimizer, round_, in_.options.rounds);
  return {in_.backend,
          layout_,
          state.client,
          round_,
          state.steps_done,
          rate,
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
}

/// The same, and the server's values to the group's clients.
void Federation::distribute(const AggregationGroup& group) {
  upload_server(group);
  for (int client : group.clients())
    if (const HostedClient* hosted = clients_.find(client)) clients_.set_shared(*hosted, group.server.values);
}

void Federation::exchange() {
  if (layout_.shared_size() == 0) return;
  PhaseTimer timer(seconds_["reduce"]);
  for (const auto& group : groups_) {
    std::vector<std::vector<float>> results;
    std::vector<Contribution> own;
    std::vector<HostedClient*> hosted;
    for (int number : participants(*group, round_)) {
      HostedClient* client = clients_.find(number);
      if (!client) continue;
      results.emplace_back(layout_.shared_size());
      clients_.get_shared(*client, results.back());
      const double weight = in_.method.data_scope() == DataScope::pooled
                                ? static_cast<double>(pool_.size())
                                : static_cast<double>(client->data.of(Split::train).size());
      own.push_back({number, weight, {}, client->state.sums.finite});
      hosted.push_back(client);
    }
    for (std::size_t i = 0; i < own.size(); ++i) own[i].values = results[i];
    std::vector<float> average(group->server.values);
    const Reduced reduced = group->average(own, average);
    for (const Contribution& c : own) {
      if (c.finite) continue;
      clients_.find(c.client)->state.sums.finite = false;
      log_warning(fmt::format("round {}: the update of {} is not finite; it is left out of the round", round_,
                              in_.partition.clients[static_cast<std::size_t>(c.client)].name));
    }
    const bool both =
        layout_.is_shared(Group::lora_a) && layout_.is_shared(Group::lora_b) && layout_.has(Group::lora_a);
    if (both && reduced.num_finite > 0)
      aggregation_error_[group->index()] =
          gather_aggregation_error(*group, layout_, in_.config.num_layers, own, average);
    const auto means = average_payloads(*group, own, hosted);
    if (reduced.num_finite > 0)
      in_.method.update_server(group->server, {layout_, round_, static_cast<int>(group->clients().size()),
                                               reduced.num_finite, average, means});
    distribute(*group);
  }
}

std::map<std::string, std::vector<float>> Federation::average_payloads(const AggregationGroup& group,
                                                                       std::span<const Contribution> own,
                                                                       std::span<HostedClient* const> hosted) {
  int shared_steps = 0;
  for (const Phase& phase : phases(round_)) shared_steps += trains_shared(phase) ? phase.steps : 0;
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (!own[i].finite) continue;
    LocalStep end = local_step(hosted[i]->state, clients_.buffers().values(hosted[i]->state), View{});
    end.step = shared_steps;
    in_.method.finish_local(end);
  }
  std::map<std::string, std::vector<float>> means;
  for (const std::string& name : in_.method.payloads()) {
    std::vector<std::vector<float>> arrays;
    std::vector<Contribution> terms;
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (!own[i].finite) continue;
      const View array = hosted[i]->state.method_state.at(name).view();
      arrays.emplace_back(static_cast<std::size_t>(array.size()));
      in_.backend.copy_to_host(arrays.back().data(), array.data, arrays.back().size() * sizeof(float));
      terms.push_back({own[i].client, 1.0, {}, true});
    }
    for (std::size_t i = 0; i < terms.size(); ++i) terms[i].values = arrays[i];
    means[name].resize(layout_.shared_size());
    group.average(terms, means[name]);
  }
  return means;
}

}  // namespace fedpdpo
