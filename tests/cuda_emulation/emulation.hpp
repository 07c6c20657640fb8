// Switches of the emulated device that tests set.
#pragma once

#include <cstddef>

namespace emulation {

/// In which order a block's threads run between two barriers, backward also with the warps by turns, operation by
/// operation. Code that misses a barrier gives other numbers.
enum class Order { forward, backward };
void set_order(Order order);
/// Whether this build looks for accesses that no barrier orders, as the thread sanitizer reports them (FEDPDPO_RACES).
bool sees_races();

/// Without devices, cudaGetDeviceCount fails as it does where there is no driver. At the start one, or as many as the
/// environment variable FEDPDPO_EMULATED_DEVICES says.
void set_device_count(int count);
/// Allocations beyond this fail; cudaMemGetInfo claims `unseen` bytes more, as if another process were about to take
/// them. At the start 1 GiB, or as many KiB as the environment variable FEDPDPO_EMULATED_MEMORY says, as KIB or
/// KIB+UNSEEN.
void set_device_memory(std::size_t bytes, std::size_t unseen = 0);
/// What cuBLASLt's algorithms are for: any number of rows of the batch, those alone that they were chosen for, or there
/// are none.
enum class GemmSupport { any_rows, chosen_rows, none };
void set_gemm_support(GemmSupport support);
/// Calls fail as they do once a kernel has crashed, whatever they ask for.
void lose_device(bool lost);
/// Without them cudaMallocAsync is not supported.
void set_memory_pools(bool has_pools);
/// The device lets nobody else in, as one whose compute mode is exclusive.
void keep_device_busy(bool busy);
/// A larger piece of page-locked host memory is not given.
void set_most_pinned(std::size_t bytes);
/// The device that cudaSetDevice took last.
int current_device();

/// sound; refuses: every call fails; remote_error: calls succeed, but another rank is lost.
enum class NcclState { sound, refuses, remote_error };
void set_nccl_state(NcclState state);
/// What NCCL did so far in this process.
struct NcclCounts {
  int sums = 0, aborts = 0;
  int communicators = 0;  ///< that there are now
};
NcclCounts nccl_counts();

/// A stream that has had nothing but copies does its next one at once, as soon as the events it waits for allow;
/// without this, as late as they allow. At the start so where the environment variable FEDPDPO_EMULATED_EARLY_COPIES is
/// set.
void set_early_copies(bool early);

/// Calls so far, to see what the steady state does.
struct Counts {
  std::size_t allocations = 0, heuristics = 0, waits = 0, launches = 0, graph_launches = 0;
  std::size_t fragments = 0;  ///< products of fragments on the matrix units
};
Counts counts();

}  // namespace emulation
