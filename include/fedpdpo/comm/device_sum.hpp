// Weighted sums over clients whose vectors lie in the memory of their ranks' backends: added up there, summed over the
// ranks by NCCL, and only the result comes to the host. exact() gives the bits of ExactSum.
#pragma once

#include <span>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/comm/exact_sum.hpp"
#include "fedpdpo/comm/nccl.hpp"

namespace fedpdpo {

/// One client's part of a sum.
struct SumTerm {
  ConstView on_device;          ///< (1, n) f32 in the backend's memory; without data where it is not there,
  std::span<const float> host;  ///< and then here
  double weight = 0;
};

class DeviceSum {
 public:
  /// `block_offsets` as of ExactSum. `nccl` is null where the group is one rank; both references outlive it.
  DeviceSum(Backend& backend, std::vector<std::size_t> block_offsets, NcclCommunicator* nccl);

  /// The largest magnitude of every block of every term (terms, blocks), infinite or NaN if a value is not finite;
  /// waits for the device.
  std::vector<std::vector<float>> peaks(std::span<const SumTerm> terms);
  /// Collective over the group. `peaks` are those of the terms and finite; `num_terms` counts over all ranks.
  void exact(const Communicator& group, std::span<const SumTerm> terms, std::span<const std::vector<float>> peaks,
             int num_terms, std::span<float> result);
  /// Collective over the group: in float, in any order.
  void fast(std::span<const SumTerm> terms, std::span<float> result);

 private:
  std::int64_t size() const { return static_cast<std::int64_t>(blocks_.back()); }
  ConstView on_device(const SumTerm& term);
  /// Collective: the ranks' sums, in place.
  void reduce(View sums);
  void to_host(ConstView values, std::span<float> result);

  Backend& backend_;
  std::vector<std::size_t> blocks_;
  NcclCommunicator* nccl_;
  Tensor offsets_, exponents_;
  Tensor staged_;  // (1, n), once a term comes from the host
};

}  // namespace fedpdpo
