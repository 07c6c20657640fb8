// Groups of clients by the direction of their updates: average linkage on cosines (agglomerative; as Briggs et al.
// 2020, arXiv 2004.11791, with the cosine of Sattler et al. 2019, arXiv 1910.01991).
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

/// What a client's updates point to.
struct ClientDirection {
  int client = 0;
  std::vector<float> values;
};

/// Collective. Inner products of all clients' directions, (num_clients, num_clients) row-major, on rank 0 (empty
/// elsewhere); rows of clients without a direction are 0. Gathered in pieces; summed in double in an order that does
/// not depend on ranks.
std::vector<double> direction_products(const Communicator& world, int num_clients, std::span<const ClientDirection> own,
                                       std::size_t size);

/// Merging goes on, closest two groups first, until there are `num_groups`, or, where that is 0, until the closest two
/// conflict: the mean cosine between them is
///   - below minus half of the mean cosine within them: they point apart as much as each holds together, and
///   - more than `errors` standard errors below 0, one being s / sqrt(number of pairs between them), with s the root
///     mean square of all cosines.
/// Clients of different data without a conflict are nearly orthogonal, so this tells skew from contradiction. With few
/// clients there are too few pairs to tell: 3 errors take more than 9 pairs.
struct GroupingRule {
  int num_groups = 0;
  double errors = 3;
};

/// Group of every client, numbered in the order of their first client; -1 for clients that are not `members`. A member
/// without a direction goes with the largest group.
std::vector<int> group_directions(std::span<const double> products, int num_clients, std::span<const int> members,
                                  const GroupingRule& rule);

}  // namespace fedpdpo
