// Rotary embeddings by position.
#include "rotary_tables.hpp"

#include <cmath>
#include <numbers>

namespace fedpdpo {

RotaryTables rotary_tables(const ModelConfig& c) {
  const std::int64_t half = c.rotary_dim / 2;
  const auto size = static_cast<std::size_t>(c.table_positions() * half);
  RotaryTables tables{std::vector<float>(size), std::vector<float>(size)};
  for (std::int64_t i = 0; i < half; ++i) {
    double frequency = std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(c.rotary_dim));
    const RopeScaling& s = c.rope_scaling;
    if (s.factor != 1) {
      const double wavelength = 2 * std::numbers::pi / frequency;
      const auto original = static_cast<double>(s.original_positions);
      if (wavelength > original / s.low_frequency_factor) {
        frequency /= s.factor;
      } else if (wavelength > original / s.high_frequency_factor) {
        const double smooth =
            (original / wavelength - s.low_frequency_factor) / (s.high_frequency_factor - s.low_frequency_factor);
        frequency = (1 - smooth) * frequency / s.factor + smooth * frequency;
      }
    }
    for (std::int64_t p = 0; p < c.table_positions(); ++p) {
      const auto at = static_cast<std::size_t>(p * half + i);
      tables.cos[at] = static_cast<float>(std::cos(static_cast<double>(p) * frequency));
      tables.sin[at] = static_cast<float>(std::sin(static_cast<double>(p) * frequency));
    }
  }
  return tables;
}

}  // namespace fedpdpo
