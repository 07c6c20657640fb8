// Centralized training: one model on the pooled train pairs of all clients, K steps for every client in a round, so
// that it sees as many pairs as the federation does; evaluated on each client's own pairs.
//   shared: all groups    local: the pool's steps    server: x <- y
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> Centralized::shared_groups() const {
  return {Group::lora_a, Group::lora_b, Group::bottleneck, Group::head, Group::reward};
}

DataScope Centralized::data_scope() const { return DataScope::pooled; }

/// The pairs lie in one place: nothing travels in a round.
Traffic Centralized::traffic(const TrafficRound&) const { return {}; }

}  // namespace fedpdpo
