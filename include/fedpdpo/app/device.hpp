// What --device comes to on a rank: the CPU, or one of its node's CUDA devices.
#pragma once

#include <optional>
#include <string>

#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo {

struct DeviceChoice {
  std::optional<int> cuda;  ///< the device's index; nothing: the CPU
  std::string line;         ///< for people, where --device left the choice: what was taken and why
};

/// `wanted` is cpu, cuda, cuda:INDEX or auto. Ranks of a node take its devices in turn, by their rank on the node; auto
/// takes a device where every rank of the job has one. InputError where there is no such device.
DeviceChoice choose_device(const std::string& wanted, const CudaDevices& here, int node_rank, bool every_rank_has_one);

}  // namespace fedpdpo
