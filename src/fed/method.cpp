// What most methods do: train as scheduled, leave the gradient alone, take the average.
#include "fedpdpo/fed/method.hpp"

#include <algorithm>

namespace fedpdpo {

std::vector<Phase> FederatedMethod::plan_round(int, std::vector<Phase> scheduled) const { return scheduled; }

void FederatedMethod::adjust_gradient(const LocalStep&) const {}

void FederatedMethod::update_server(ServerState& server, std::span<const float> average) const {
  std::copy(average.begin(), average.end(), server.values.begin());
}

}  // namespace fedpdpo
