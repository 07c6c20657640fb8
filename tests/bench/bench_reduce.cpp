// The sum of an exact reduction over ranks, flat against hierarchical, interleaved; a repetition takes as long as its
// slowest rank. mpirun -n RANKS bench_reduce [RANKS_PER_NODE [MEGABYTES [REPEATS]]].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fedpdpo/comm/communicator.hpp"

namespace {

double seconds_of(const fedpdpo::Communicator& group, std::vector<std::int64_t>& values) {
  group.barrier();
  const auto begin = std::chrono::steady_clock::now();
  group.sum(values);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  group.max(std::span(&seconds, 1));
  return seconds;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const fedpdpo::MpiSession session(&argc, &argv);
  const int per_node = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  const double megabytes = argc > 2 ? std::atof(argv[2]) : 10;
  const int repeats = argc > 3 ? std::max(1, std::atoi(argv[3])) : 41;
  const fedpdpo::Communicator flat = fedpdpo::Communicator::world();
  fedpdpo::Communicator by_nodes = fedpdpo::Communicator::world();
  by_nodes.use_hierarchy(flat.rank() / per_node);
  std::vector<std::int64_t> values(static_cast<std::size_t>(megabytes * 1e6 / sizeof(std::int64_t)), 1);
  std::vector<double> flat_times, node_times, ratios;
  for (int i = 0; i <= repeats; ++i) {
    const double one = seconds_of(flat, values), other = seconds_of(by_nodes, values);
    std::fill(values.begin(), values.end(), 1);
    if (i == 0) continue;  // first use of the buffers
    flat_times.push_back(one);
    node_times.push_back(other);
    ratios.push_back(other / one);
  }
  if (flat.rank() == 0) {
    std::printf("%d ranks, %d a node, %.1f MB: flat %.2f ms, hierarchical %.2f ms, median ratio %.2f\n", flat.size(),
                per_node, megabytes, 1e3 * median(flat_times), 1e3 * median(node_times), median(ratios));
  }
  return 0;
}
