// Who owns which pairs. A partition is a pure function of (pairs, options, seed).
//
// With F files (domains), the clients are dealt to the domains in equal runs: client c belongs to domain
// floor(c F / C). Within a domain its pairs go to its clients:
//   dirichlet  for every category a draw q ~ Dir(alpha, ..., alpha) over the domain's clients; the category's train,
//              validation and test pairs are all cut in the proportions q (Hsu, Qi, Brown 2019), so a client's three
//              splits follow the same distribution. Redrawn (a counted, bounded number of times) until every client
//              has at least min_train train pairs and one test pair.
//   iid        q = uniform
//   quantity   one q ~ Dir(alpha) for the whole domain: clients differ in size, not in kind
// The pairs of a category and split are shuffled first. Splits are the file's own: no prompt crosses them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fedpdpo/data/pairs.hpp"

namespace fedpdpo {

enum class PartitionKind : std::uint8_t { iid, dirichlet, quantity };

struct PartitionOptions {
  PartitionKind kind = PartitionKind::dirichlet;
  int num_clients = 10;
  double alpha = 0.3;
  int num_new_clients = 0;    ///< of them, clients that never train and are met at the end
  double flip_clients = 0;    ///< share of all clients whose pairs have chosen and rejected swapped (all splits)
  std::size_t min_train = 8;  ///< least number of train pairs of a client
  std::size_t max_train = 0;  ///< keep at most so many train pairs of a client (0: all); likewise below
  std::size_t max_validation = 0;
  std::size_t max_test = 0;
  std::uint64_t seed = 0;
};

struct ClientShare {
  std::string name;         ///< "client003" or "DOMAIN/client003"
  std::int32_t domain = 0;  ///< index of the file
  bool flipped = false;
  bool is_new = false;                       ///< never trains
  std::array<std::vector<PairId>, 3> pairs;  ///< by Split, in the (shuffled) order that truncation kept
};

struct Partition {
  std::vector<ClientShare> clients;
  int num_redraws = 0;

  /// (C, 3, L) counts, row-major.
  std::vector<std::int64_t> label_histogram(const PairSet& pairs) const;
};

/// InputError where it cannot be done: more clients than train pairs, fewer clients than domains, a client that stays
/// empty after the bounded redraws (the line says which, and what to change).
Partition make_partition(const PairSet& pairs, const PartitionOptions& options);

}  // namespace fedpdpo
