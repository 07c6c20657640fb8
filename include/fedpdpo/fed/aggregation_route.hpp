// Where a group's sums over clients are made. On the device: added up in the memory of each rank's GPU and all-reduced
// by NCCL, which wants a GPU for every rank; a group of one rank needs no NCCL. Otherwise on the host, by MPI. The
// exact sum has the same bits either way.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

enum class SumPlace : std::uint8_t {
  host,         ///< copied to the host, summed over ranks by MPI
  one_device,   ///< the group is one rank: summed in its device's memory
  all_devices,  ///< by NCCL
};

/// What a rank says of itself.
struct RankDevice {
  int rank = 0;             ///< in the world
  std::string backend;      ///< Backend::name()
  std::string node;         ///< the same for ranks that share a kernel
  std::string device;       ///< Backend::device_identity()
  std::string nccl;         ///< version, where it can be loaded
  std::string why_no_nccl;  ///< and why not elsewhere
};

RankDevice describe_rank(int rank, const Backend& backend);

/// Collective: of every rank of the group, by rank.
std::vector<RankDevice> gather_devices(const Communicator& group, const RankDevice& own);

struct AggregationRoute {
  SumPlace place = SumPlace::host;
  std::string why;  ///< not on the device; the NCCL version where all_devices
  /// As run.h5 records it.
  std::string text() const;
};

/// The same on every rank that is given the same. `needs_host` says why contributions cannot stay on the device; empty
/// where they can.
AggregationRoute choose_route(Aggregation wanted, std::span<const RankDevice> ranks, const std::string& needs_host);

/// Why a run's contributions cannot stay on the device, or empty: what changes them on the host before they are summed.
std::string needs_host_sums(const RunOptions& options);

}  // namespace fedpdpo
