// What most methods do: train as scheduled, leave the gradient alone, take the average.
#include "fedpdpo/fed/method.hpp"

#include <algorithm>

namespace fedpdpo {

std::vector<Phase> FederatedMethod::plan_round(int, std::vector<Phase> scheduled) const { return scheduled; }

void FederatedMethod::adjust_gradient(const LocalStep&) const {}

void FederatedMethod::adjust_step(const LocalStep&) const {}

void FederatedMethod::finish_local(const LocalStep&) const {}

void FederatedMethod::update_server(ServerState& server, const ServerRound& round) const {
  std::copy(round.average.begin(), round.average.end(), server.values.begin());
}

Traffic FederatedMethod::traffic(const ParameterLayout& layout, int) const {
  return {layout.shared_size() * (1 + payloads().size()), layout.shared_size()};
}

std::vector<Phase> without_group(std::vector<Phase> phases, Group group) {
  for (Phase& phase : phases) std::erase(phase.trainable, group);
  std::erase_if(phases, [](const Phase& phase) { return phase.trainable.empty(); });
  return phases;
}

View LocalStep::client_array(const std::string& name) const {
  const auto size = static_cast<std::int64_t>(layout.shared_size());
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
