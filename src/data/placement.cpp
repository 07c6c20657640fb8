// Longest processing time first: sort by cost, give each client to the least loaded rank.
#include "fedpdpo/data/placement.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

double Placement::imbalance() const {
  const double total = std::accumulate(rank_cost.begin(), rank_cost.end(), 0.0);
  if (total == 0) return 1;
  return *std::max_element(rank_cost.begin(), rank_cost.end()) * static_cast<double>(rank_cost.size()) / total;
}

std::vector<int> Placement::clients_of(int rank) const {
  std::vector<int> clients;
  for (std::size_t client = 0; client < rank_of_client.size(); ++client) {
    if (rank_of_client[client] == rank) clients.push_back(static_cast<int>(client));
  }
  return clients;
}

Placement place_clients(std::span<const double> client_cost, int num_ranks) {
  check(num_ranks > 0, "clients are placed on at least one rank");
  for (const double cost : client_cost) {
    check(std::isfinite(cost) && cost >= 0, "a client's cost is finite and not negative");
  }
  std::vector<int> order(client_cost.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return client_cost[static_cast<std::size_t>(a)] > client_cost[static_cast<std::size_t>(b)];
  });

  Placement placement;
  placement.rank_of_client.resize(client_cost.size());
  placement.rank_cost.resize(static_cast<std::size_t>(num_ranks));
  using Load = std::pair<double, int>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int rank = 0; rank < num_ranks; ++rank) loads.emplace(0.0, rank);
  for (const int client : order) {
    const auto [cost, rank] = loads.top();
    loads.pop();
    const double sum = cost + client_cost[static_cast<std::size_t>(client)];
    placement.rank_of_client[static_cast<std::size_t>(client)] = rank;
    placement.rank_cost[static_cast<std::size_t>(rank)] = sum;
    loads.emplace(sum, rank);
  }
  return placement;
}

}  // namespace fedpdpo
