// Rows of numbers under whole-number keys (clients, groups), brought together on rank 0.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

class KeyedRows {
 public:
  void add(int key, std::span<const double> row);
  /// Collective. The rows of all ranks by key on rank 0, of any lengths; empty elsewhere.
  std::map<int, std::vector<double>> gather(const Communicator& world) const;

 private:
  std::vector<double> packed_;  // key, length, numbers; and so on
};

}  // namespace fedpdpo
