// When training passes are given to a device as graphs.
#pragma once

#include <cstdint>

namespace fedpdpo {

/// Whether passes are recorded, so that the host gives a pass as one graph: worth it for small passes, whose batches
/// are then filled up to few sizes (data/packing.hpp). On devices that can record, and without dropout.
enum class Graphs : std::uint8_t { never, small_passes, always };
/// Rows of the largest small pass: about as many as keep a device busy while the host gives the next pass's work, an
/// estimate.
inline constexpr std::int32_t small_pass_rows = 4096;

}  // namespace fedpdpo
