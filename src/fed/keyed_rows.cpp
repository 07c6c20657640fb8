// Packed into one message a rank.
#include "keyed_rows.hpp"

#include <cstring>

namespace fedpdpo {

void KeyedRows::add(int key, std::span<const double> row) {
  packed_.insert(packed_.end(), {static_cast<double>(key), static_cast<double>(row.size())});
  packed_.insert(packed_.end(), row.begin(), row.end());
}

std::map<int, std::vector<double>> KeyedRows::gather(const Communicator& world) const {
  std::map<int, std::vector<double>> rows;
  for (const auto& bytes : world.gather(std::as_bytes(std::span(packed_)), 0)) {
    std::vector<double> numbers(bytes.size() / sizeof(double));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
    for (std::size_t at = 0; at < numbers.size();) {
      const auto length = static_cast<std::ptrdiff_t>(numbers[at + 1]);
      const auto begin = numbers.begin() + static_cast<std::ptrdiff_t>(at) + 2;
      rows[static_cast<int>(numbers[at])].assign(begin, begin + length);
      at += 2 + static_cast<std::size_t>(length);
    }
  }
  return rows;
}

}  // namespace fedpdpo
