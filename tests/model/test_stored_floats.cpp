// Halves and back.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "../../src/model/stored_floats.hpp"

namespace fedpdpo {
namespace {

TEST(StoredFloats, EveryHalfComesBack) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const auto bits = static_cast<std::uint16_t>(half);
    const float value = from_f16(bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(from_f16(to_f16(value))));
    } else {
      EXPECT_EQ(to_f16(value), bits) << value;
    }
  }
}

TEST(StoredFloats, HalvesAreRoundedToTheNearestAndTiesToEven) {
  for (std::uint16_t half = 0; half < 0x7bff; ++half) {  // between neighbours up to the largest
    const auto next = static_cast<std::uint16_t>(half + 1);
    const float low = from_f16(half), high = from_f16(next), middle = (low + high) / 2;  // exact in fp32
    const std::uint16_t even = half % 2 == 0 ? half : next;
    ASSERT_EQ(to_f16(middle), even) << half;
    ASSERT_EQ(to_f16(std::nextafter(middle, 0.0f)), half) << half;
    ASSERT_EQ(to_f16(-std::nextafter(middle, 1e9f)), next | 0x8000) << half;
  }
  EXPECT_EQ(to_f16(65519.99f), 0x7bff);
  EXPECT_EQ(to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(to_f16(-std::numeric_limits<float>::infinity()), 0xfc00);
}

TEST(StoredFloats, Bfloats) {
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    const float low = std::bit_cast<float>(bits << 16), high = std::bit_cast<float>((bits + 1) << 16);
    ASSERT_EQ(to_bf16(low), bits);
    if (bits + 1 == 0x7f80) continue;
    const float middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    ASSERT_EQ(to_bf16(middle), bits % 2 == 0 ? bits : bits + 1) << low << " " << high;
  }
}

}  // namespace
}  // namespace fedpdpo
