// RoLoRA (Chen et al. 2024, arXiv 2409.02346): rounds alternate between B and A, so that each average is exact. B comes
// first: with B = 0, A has no gradient.
//   shared: A, B    local: odd rounds K steps on B, even rounds K steps on A    server: the half that was trained
//   x <- sum p_i y_i, the other half stays
#include <algorithm>

#include "methods.hpp"

namespace fedpdpo {
namespace {

Group trained_group(int round) { return round % 2 == 1 ? Group::lora_b : Group::lora_a; }
Group resting_group(int round) { return round % 2 == 1 ? Group::lora_a : Group::lora_b; }

}  // namespace

std::vector<Phase> RoLora::plan_round(int round, std::vector<Phase> scheduled) const {
  return without_group(std::move(scheduled), resting_group(round));
}

void RoLora::update_server(ServerState& server, const ServerRound& round) const {
  const ParameterRange range = round.layout.range(trained_group(round.round));
  std::copy_n(round.average.begin() + static_cast<std::ptrdiff_t>(range.begin), range.size(),
              server.values.begin() + static_cast<std::ptrdiff_t>(range.begin));
}

Traffic RoLora::traffic(const TrafficRound& round) const {
  const std::size_t half = round.layout.range(trained_group(round.round)).size();
  return {half, half};
}

std::string RoLora::refuses(Feature feature) const {
  if (feature == Feature::compression) return "it sends A and B in turn, so that nothing is sent later";
  return FedAvg::refuses(feature);
}

}  // namespace fedpdpo
