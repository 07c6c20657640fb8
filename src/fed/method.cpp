// What most methods do: train as scheduled, leave the gradient alone, take the average.
#include "fedpdpo/fed/method.hpp"

#include <algorithm>
#include <cmath>

namespace fedpdpo {

std::vector<Phase> FederatedMethod::plan_round(int, std::vector<Phase> scheduled) const { return scheduled; }

void FederatedMethod::adjust_gradient(const LocalStep&) const {}

void FederatedMethod::adjust_step(const LocalStep&) const {}

void FederatedMethod::finish_local(const LocalStep&) const {}

std::size_t FederatedMethod::client_state_size(const ParameterLayout&) const { return 0; }

void FederatedMethod::update_server(ServerState& server, const ServerRound& round) const {
  std::copy(round.average.begin(), round.average.end(), server.values.begin());
}

void FederatedMethod::move_backbone(ServerState&, const ServerRound&, std::span<const WeightedLora>) const {}

Traffic FederatedMethod::traffic(const TrafficRound& round) const {
  return {round.layout.shared_size() * (1 + payloads().size()), round.layout.shared_size()};
}

double Traffic::bytes_up(std::size_t shared_size, std::size_t compressed) const {
  if (shared_size == 0) return 0;
  const double share = static_cast<double>(std::min(up, shared_size)) / static_cast<double>(shared_size);
  const std::size_t payload = up > shared_size ? 4 * (up - shared_size) : 0;
  return std::round(share * static_cast<double>(compressed)) + static_cast<double>(payload);
}

std::string FederatedMethod::refuses(Feature feature) const {
  if (feature == Feature::lora_ranks) return "its server averages factors, which takes one rank for all";
  if (data_scope() == DataScope::pooled) return "it trains one model on the pooled pairs";
  if (shared_groups().empty()) return "it shares nothing";
  const bool restarts = !restarted_groups().empty();
  switch (feature) {
    case Feature::found_groups:
      if (restarts) return "its LoRA starts anew in every round, so that directions of updates do not add up";
      if (moves_backbone()) return "its clients trained on their group's frozen weights, others than a new group's";
      return payloads().empty() ? "" : "its server state belongs to the clients of one group";
    case Feature::personal_lora:
      return moves_backbone() ? "its server moves the frozen weights under the personal LoRA" : "";
    case Feature::privacy:
      if (moves_backbone()) return "its server adds the clients' products up without clipping or noise";
      if (!common_groups().empty()) return "it averages a part over all groups, without noise";
      return payloads().empty() ? "" : "it sends more than the update, without clipping or noise";
    case Feature::compression:
      return restarts ? "its LoRA starts anew in every round, so that nothing is sent later" : "";
    default:
      return "";
  }
}

std::vector<Phase> without_group(std::vector<Phase> phases, Group group) {
  for (Phase& phase : phases) std::erase(phase.trainable, group);
  std::erase_if(phases, [](const Phase& phase) { return phase.trainable.empty(); });
  return phases;
}

bool LocalStep::trains(Group group) const { return std::find(trained.begin(), trained.end(), group) != trained.end(); }

View LocalStep::client_array(const std::string& name) const {
  return client_array(name, static_cast<std::int64_t>(layout.shared_size()));
}

View LocalStep::client_array(const std::string& name, std::int64_t size) const {
  auto found = state.find(name);
  if (found == state.end()) {
    found = state.emplace(name, Tensor(backend, 1, size)).first;
    backend.fill(found->second.view(), 0.0f);
  }
  return found->second.view();
}

ConstView LocalStep::server_array(const std::string& name) const {
  const auto found = server_state.find(name);
  return found == server_state.end() ? ConstView{} : ConstView(found->second.view());
}

}  // namespace fedpdpo
