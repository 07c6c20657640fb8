// Long messages in pieces: MPI counts are ints, and a gigabyte at a time strains the transports' buffers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace fedpdpo {

inline constexpr std::size_t max_message_bytes = std::size_t{1} << 26;

/// Calls piece(span, count) for consecutive pieces of `values`; none if it is empty. Sender and receiver, or all ranks
/// of a collective, cut alike because they hold as many values.
template <class T, class Piece>
void for_each_piece(std::span<T> values, Piece piece) {
  constexpr std::size_t most = max_message_bytes / sizeof(T);
  for (std::size_t begin = 0; begin < values.size(); begin += most) {
    const std::span<T> part = values.subspan(begin, std::min(most, values.size() - begin));
    piece(part.data(), static_cast<int>(part.size()));
  }
}

}  // namespace fedpdpo
