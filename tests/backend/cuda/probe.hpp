// Kernels of one warp that run the instructions of cuda/mma.cuh one by one, for tests: on a device it is the hardware's
// answer that is compared with the documented layout, without one the emulation's. All pointers are device memory.
#pragma once

#include <cstdint>

namespace fedpdpo::cuda {

/// c += a b; a (32, 4), b (32, 2) and c (32, 4): a lane's registers a row.
void probe_product(void* stream, const std::uint32_t* a, const std::uint32_t* b, float* c);
/// The 32 rows of eight 16-bit elements by asynchronous copies, but for row `absent`, into registers (32, 4).
void probe_matrices(void* stream, const std::uint16_t* rows, int absent, bool transposed, std::uint32_t* registers);
/// 32 numbers by asynchronous copies of 4 bytes, but for `absent`.
void probe_copies(void* stream, const float* from, int absent, float* to);
/// For i below `pairs` of x[2 i] and x[2 i + 1]: both in one register by the instruction, by integer arithmetic, and
/// 2^x of each.
void probe_numbers(void* stream, int pairs, const float* x, std::uint32_t* packed, std::uint32_t* rounded,
                   float* powers);
/// Each lane's sum and maximum over the warp, lane i having x[i]: (32, 2).
void probe_reductions(void* stream, const float* x, float* results);

}  // namespace fedpdpo::cuda
