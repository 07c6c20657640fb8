// Clients on ranks by longest processing time first (Graham 1969): the costliest client next, to the rank with the
// least work so far; ties go to the lower client and the lower rank, so every rank computes the same plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fedpdpo {

struct Placement {
  std::vector<int> rank_of_client;
  std::vector<double> rank_cost;

  /// Largest rank cost over the mean; 1 is perfect.
  double imbalance() const;
  /// Clients of a rank, ascending.
  std::vector<int> clients_of(int rank) const;
};

Placement place_clients(std::span<const double> client_cost, int num_ranks);

}  // namespace fedpdpo
