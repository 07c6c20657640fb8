// The operations of exact sums, bit for bit, against long double: its 64-bit significand holds every term, every 64-bit
// integer, and all products with powers of two.
#include <bit>
#include <numeric>

#include "fixture.hpp"

namespace fedpdpo {
namespace {

static_assert(std::numeric_limits<long double>::digits >= 64);

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

class ExactSums : public OperationTest {
 protected:
  Buffer put_row(const std::vector<float>& row) {
    Matrix m(1, static_cast<std::int64_t>(row.size()));
    std::copy(row.begin(), row.end(), m.values.begin());
    return put(m, 3, 5);
  }
  Buffer put_sums(const std::vector<std::int64_t>& sums) {
    Buffer buffer;
    buffer.tensor = Tensor(*backend_, 1, static_cast<std::int64_t>(sums.size()) + 2, DType::i64);
    buffer.view = buffer.tensor.view().columns(1, buffer.tensor.cols() - 1);
    backend_->copy_to_device(buffer.view.data, sums.data(), sums.size() * sizeof(std::int64_t));
    return buffer;
  }
  /// The numbers between the guards, which are still zero.
  std::vector<std::int64_t> get_sums(const Buffer& buffer) {
    std::vector<std::int64_t> host(static_cast<std::size_t>(buffer.tensor.cols()));
    backend_->copy_to_host(host.data(), buffer.tensor.view().data, buffer.tensor.bytes());
    EXPECT_EQ(host.front(), 0);
    EXPECT_EQ(host.back(), 0);
    return {host.begin() + 1, host.end() - 1};
  }
  std::vector<std::uint32_t> bits_of(const Buffer& buffer) {
    expect_guard(buffer);
    const std::vector<float> host = host_of(buffer.tensor);
    std::vector<std::uint32_t> bits;
    for (std::int64_t i = 0; i < buffer.view.cols; ++i)
      bits.push_back(std::bit_cast<std::uint32_t>(host[static_cast<std::size_t>(buffer.left + i)]));
    return bits;
  }
  std::uint64_t random_word() {
    const std::uint64_t high = stream_.next_u32();
    return high << 32 | stream_.next_u32();
  }
  /// Blocks of 1, 0, 299, 5000, 2 and 3000 numbers.
  const Indices offsets_{0, 1, 1, 300, 5300, 5302, 8302};
  std::size_t block_of(std::size_t i) const {
    return static_cast<std::size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), static_cast<std::int32_t>(i)) -
                                    offsets_.begin()) -
           1;
  }
};
FEDPDPO_ON_EVERY_BACKEND(ExactSums);

TEST_P(ExactSums, PeaksOfBlocks) {
  std::vector<float> values(8302);
  for (float& v : values) v = static_cast<float>(stream_.normal());
  values[0] = -0.0f;
  values[4711] = -17.5f;
  values[5300] = -1e-42f;
  values[5301] = 1e-43f;
  std::vector<float> expected(6, 0.0f);
  for (std::size_t i = 0; i < values.size(); ++i)
    expected[block_of(i)] = std::max(expected[block_of(i)], std::abs(values[i]));
  EXPECT_EQ(expected[3], 17.5f);
  EXPECT_EQ(expected[4], 1e-42f);
  const Buffer offsets = put(offsets_), peaks = poisoned(1, 6, 2, 2);
  backend_->block_peaks(put_row(values).view, offsets.view, peaks.view);
  Matrix found = get(peaks);
  for (std::size_t b = 0; b < 6; ++b) EXPECT_EQ(found.values[b], expected[b]) << b;
  expect_guard(peaks);
  // What is not finite is seen wherever it is, and in its block alone.
  for (const auto& [at, bad] : {std::pair{299, infinity}, {300, -infinity}, {5299, nan}, {8301, -nan}}) {
    std::vector<float> broken = values;
    broken[static_cast<std::size_t>(at)] = bad;
    backend_->block_peaks(put_row(broken).view, offsets.view, peaks.view);
    found = get(peaks);
    for (std::size_t b = 0; b < 6; ++b) {
      if (b == block_of(static_cast<std::size_t>(at))) {
        EXPECT_FALSE(std::isfinite(found.values[b])) << at;
      } else {
        EXPECT_EQ(found.values[b], expected[b]) << at;
      }
    }
  }
}

TEST_P(ExactSums, TermsAreRoundedOnceToNearest) {
  std::vector<float> values(8302);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(std::ldexp(stream_.normal(), static_cast<int>(stream_.below(60)) - 30));
  // Ties, both ways: halves at exponent 0 under the weight 1.
  for (std::size_t i = 300; i < 5300; ++i) values[i] = static_cast<float>(static_cast<int>(i) - 2800) / 2;
  const Indices exponents{20, 3, 19, 0, -7, 15};
  const Buffer offsets = put(offsets_), scales = put(exponents);
  std::vector<std::int64_t> expected(values.size());
  for (std::int64_t& sum : expected) sum = static_cast<std::int64_t>(random_word());
  const Buffer sums = put_sums(expected);
  int ties = 0;
  for (const double weight : {1.0, 1.0 / 3, -0.7, 1e-9}) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double product = static_cast<double>(values[i]) * weight;
      const long double scaled = std::ldexp(static_cast<long double>(product), exponents[block_of(i)]);
      ASSERT_LT(std::abs(scaled), 0x1p62L);
      const long double below = std::floor(scaled);
      auto term = static_cast<std::int64_t>(below);
      if (scaled - below > 0.5L || (scaled - below == 0.5L && term % 2 != 0)) ++term;
      ties += scaled - below == 0.5L ? 1 : 0;
      expected[i] =
          static_cast<std::int64_t>(static_cast<std::uint64_t>(expected[i]) + static_cast<std::uint64_t>(term));
    }
    backend_->add_terms(put_row(values).view, weight, offsets.view, scales.view, TermCoding::fixed_point, sums.view);
  }
  EXPECT_GT(ties, 2000);
  EXPECT_EQ(get_sums(sums), expected);
}

/// The largest and the smallest scale that fixed_point_exponent gives.
TEST_P(ExactSums, TermsOfExtremeScales) {
  constexpr float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::denorm_min();
  const std::vector<float> values{largest, -largest, 1e38f, smallest, -3 * smallest, 0.0f};
  const std::vector<double> weights{0x1p840, 0x1p-840};
  for (const double weight : weights) {
    const double peaks[] = {static_cast<double>(largest) * weight, 3 * static_cast<double>(smallest) * weight};
    const Indices exponents{fixed_point_exponent(peaks[0], 3), fixed_point_exponent(peaks[1], 3)};
    const Buffer sums = put_sums(std::vector<std::int64_t>(6, 0));
    backend_->add_terms(put_row(values).view, weight, put(Indices{0, 3, 6}).view, put(exponents).view,
                        TermCoding::fixed_point, sums.view);
    std::vector<std::int64_t> expected;
    for (std::size_t i = 0; i < values.size(); ++i)
      expected.push_back(static_cast<std::int64_t>(
          std::rint(std::ldexp(static_cast<long double>(static_cast<double>(values[i]) * weight), exponents[i / 3]))));
    EXPECT_EQ(get_sums(sums), expected);
  }
}

TEST_P(ExactSums, SumsAreRoundedOnceToFloat) {
  std::vector<std::int64_t> sums(8302);
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sums[i] = static_cast<std::int64_t>(random_word()) >> stream_.below(64);
    // Halfway between floats, and one beside: what rounding twice, by way of a double, would get wrong.
    if (i % 3 == 0) {
      const auto bits = static_cast<int>(stream_.below(39));
      sums[i] = static_cast<std::int64_t>(
                    ((std::uint64_t{1} << 23 | (random_word() & 0x7fffffu)) << bits << 1 | std::uint64_t{1} << bits)) +
                static_cast<std::int64_t>(i % 9) / 3 - 1;
    }
    if (i % 6 == 0) sums[i] = -sums[i];
  }
  sums[0] = std::numeric_limits<std::int64_t>::min();
  sums[5300] = std::numeric_limits<std::int64_t>::max();
  sums[5301] = 0;
  // Large numbers, subnormal floats, such that vanish, and the largest scales.
  for (const Indices& exponents :
       {Indices{0, 0, 20, 61, -30, 40}, Indices{160, 0, 170, 189, 200, 212}, Indices{1000, 0, -60, 149, -63, -64}}) {
    std::vector<std::uint32_t> expected;
    for (std::size_t i = 0; i < sums.size(); ++i)
      expected.push_back(std::bit_cast<std::uint32_t>(
          static_cast<float>(std::ldexp(static_cast<long double>(sums[i]), -exponents[block_of(i)]))));
    const Buffer y = poisoned(1, 8302, 1, 4);
    backend_->round_sums(put_sums(sums).view, put(offsets_).view, put(exponents).view, TermCoding::fixed_point, y.view);
    EXPECT_EQ(bits_of(y), expected);
  }
}

TEST_P(ExactSums, OneTermKeepsItsBits) {
  std::vector<float> values(8302);
  for (float& v : values) v = std::bit_cast<float>(stream_.next_u32() & 0xbfffffffu);  // below 2
  values[0] = -0.0f;
  std::vector<std::uint32_t> expected;
  for (const double weight : {1.0, -1.0 / 3}) {
    expected.clear();
    for (const float v : values)
      expected.push_back(std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<double>(v) * weight)));
    const Buffer sums = put_sums(std::vector<std::int64_t>(values.size(), 0)), y = poisoned(1, 8302, 1, 4);
    const Buffer offsets = put(offsets_), scales = put(Indices{0, 1, 2, 3, 4, 5});
    backend_->add_terms(put_row(values).view, weight, offsets.view, scales.view, TermCoding::float_bits, sums.view);
    backend_->round_sums(sums.view, offsets.view, scales.view, TermCoding::float_bits, y.view);
    EXPECT_EQ(bits_of(y), expected);
  }
}

TEST_P(ExactSums, Contracts) {
  const Buffer values = put_row({1, 2, 3}), sums = put_sums({0, 0, 0}), offsets = put(Indices{0, 1, 3}),
               scales = put(Indices{0, 0}), peaks = poisoned(1, 2), y = poisoned(1, 3);
  EXPECT_ANY_THROW(backend_->block_peaks(values.view, offsets.view, y.view));
  EXPECT_ANY_THROW(backend_->block_peaks(sums.view, offsets.view, peaks.view));
  EXPECT_ANY_THROW(backend_->add_terms(values.view, 1, scales.view, scales.view, TermCoding::fixed_point, sums.view));
  EXPECT_ANY_THROW(backend_->add_terms(values.view, 1, offsets.view, scales.view, TermCoding::fixed_point, y.view));
  EXPECT_ANY_THROW(backend_->add_terms(values.view, 1, put(Indices{0}).view, scales.view.columns(0, 0),
                                       TermCoding::fixed_point, sums.view));
  EXPECT_ANY_THROW(backend_->round_sums(values.view, offsets.view, scales.view, TermCoding::fixed_point, y.view));
  EXPECT_ANY_THROW(backend_->round_sums(sums.view, offsets.view, scales.view, TermCoding::fixed_point, peaks.view));
  EXPECT_ANY_THROW(backend_->copy(sums.view, sums.view));
  EXPECT_ANY_THROW(backend_->fill(sums.view, 0));
  // Nothing is nothing.
  const Buffer none = put(Indices{0});
  backend_->block_peaks(values.view.columns(0, 0), none.view, peaks.view.columns(0, 0));
  backend_->add_terms(values.view.columns(0, 0), 1, none.view, scales.view.columns(0, 0), TermCoding::fixed_point,
                      sums.view.columns(0, 0));
  if (backend_->name() != "cpu") return;  // indices in device memory are not looked at
  for (const Indices& bad : {Indices{0, 1, 2}, Indices{0, 4, 3}, Indices{1, 2, 3}})
    EXPECT_ANY_THROW(backend_->block_peaks(values.view, put(bad).view, peaks.view));
}

}  // namespace
}  // namespace fedpdpo
