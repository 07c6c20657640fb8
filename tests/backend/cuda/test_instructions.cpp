// The instructions that kernels on the matrix units are made of, one by one: which element of a matrix a lane's
// register holds, by the strides that the PTX ISA's figures come to (of an element's number m + 16 k in A, n + 8 k in
// B, m + 16 n in C, and of a bit's number in the eight-row matrices of ldmatrix); what copies leave where they copy
// nothing; and how numbers are rounded. A failure here names the instruction that all those kernels would get wrong.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "backend/cuda/probe.hpp"
#include "backend/fixture.hpp"

namespace fedpdpo {
namespace {

constexpr int kLanes = 32;
using Words = std::vector<std::uint32_t>;

class CudaInstructions : public testing::Test {
 protected:
  void SetUp() override {
    for (const BackendCase& one : backend_cases())
      if (!backend_ && one.name.find("cuda") != std::string::npos) backend_ = one.make();
    if (!backend_) GTEST_SKIP() << "no CUDA device";
  }
  /// Device memory of the host's numbers; `at<T>` is where they lie.
  template <class T>
  Tensor put(const std::vector<T>& host) {
    Tensor tensor(*backend_, 1, static_cast<std::int64_t>((host.size() * sizeof(T) + 3) / 4));
    backend_->copy_to_device(tensor.view().data, host.data(), host.size() * sizeof(T));
    return tensor;
  }
  template <class T>
  static T* at(const Tensor& tensor) {
    return static_cast<T*>(tensor.view().data);
  }
  template <class T>
  std::vector<T> get(const Tensor& tensor) {
    std::vector<T> host(tensor.bytes() / sizeof(T));
    backend_->copy_to_host(host.data(), tensor.view().data, tensor.bytes());
    return host;
  }
  void* stream() const { return backend_->native_stream(); }

  std::unique_ptr<Backend> backend_;
};

// Numbers of elements: lane, then value v of the lane, the v-th 16-bit half of its registers (of C the v-th register).
int number_in_a(int lane, int v) { return lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128; }
int number_in_b(int lane, int v) { return lane % 4 * 16 + lane / 4 + v % 2 * 8 + v / 2 * 64; }
int number_in_c(int lane, int v) { return lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 * 8; }

/// One row of A by one column of B at a time: every element of the product tells where both factors lie.
TEST_F(CudaInstructions, MmaFragments) {
  std::vector<double> a(16 * 16), b(8 * 16), c(16 * 8);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<double>(i * 37 % 61) - 30;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<double>(i * 29 % 53) - 26;
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = static_cast<double>(i) * 0.5;
  Words a_registers(4 * kLanes), b_registers(2 * kLanes);
  std::vector<float> c_registers(4 * kLanes);
  const auto put_half = [](Words& to, int v, double value) {
    to[static_cast<std::size_t>(v / 2)] |= std::uint32_t{bf16_bits(static_cast<float>(value))} << v % 2 * 16;
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int v = 0; v < 8; ++v) put_half(a_registers, 8 * lane + v, a[static_cast<std::size_t>(number_in_a(lane, v))]);
    for (int v = 0; v < 4; ++v) put_half(b_registers, 4 * lane + v, b[static_cast<std::size_t>(number_in_b(lane, v))]);
    for (int v = 0; v < 4; ++v)
      c_registers[static_cast<std::size_t>(4 * lane + v)] =
          static_cast<float>(c[static_cast<std::size_t>(number_in_c(lane, v))]);
  }
  const Tensor left = put(a_registers), right = put(b_registers), sums = put(c_registers);
  cuda::probe_product(stream(), at<std::uint32_t>(left), at<std::uint32_t>(right), at<float>(sums));
  const std::vector<float> found = get<float>(sums);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int v = 0; v < 4; ++v) {
      const int m = number_in_c(lane, v) % 16, n = number_in_c(lane, v) / 16;
      double expected = c[static_cast<std::size_t>(m + 16 * n)];
      for (int k = 0; k < 16; ++k)
        expected += a[static_cast<std::size_t>(m + 16 * k)] * b[static_cast<std::size_t>(n + 8 * k)];
      EXPECT_EQ(found[static_cast<std::size_t>(4 * lane + v)], expected)  // sums of small integers are exact
          << "lane " << lane << ", register " << v << ": row " << m << ", column " << n;
    }
}

TEST_F(CudaInstructions, LdmatrixAndAsynchronousCopiesOf16Bytes) {
  constexpr int kAbsent = 21;
  std::vector<std::uint16_t> rows(8 * kLanes);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(i + 1);
  const Tensor from = put(rows), to = put(Words(4 * kLanes));
  for (const bool transposed : {false, true}) {
    cuda::probe_matrices(stream(), at<std::uint16_t>(from), kAbsent, transposed, at<std::uint32_t>(to));
    const auto found = get<std::uint16_t>(to);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int v = 0; v < 8; ++v) {  // half v % 2 of register v / 2
        const int bit = transposed ? lane % 4 * 256 + lane / 4 * 16 + v % 2 * 128 + v / 2 * 1024
                                   : lane * 32 + v % 2 * 16 + v / 2 * 1024;
        const int row = bit / 128;
        EXPECT_EQ(found[static_cast<std::size_t>(8 * lane + v)],
                  row == kAbsent ? 0 : rows[static_cast<std::size_t>(bit / 16)])
            << (transposed ? "transposed, " : "") << "lane " << lane << ", register " << v / 2 << ", half " << v % 2
            << ": row " << row << ", column " << bit / 16 % 8;
      }
  }
}

TEST_F(CudaInstructions, AsynchronousCopiesOf4Bytes) {
  std::vector<float> numbers(kLanes);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i + 1);
  const Tensor from = put(numbers), to = put(std::vector<float>(kLanes));
  cuda::probe_copies(stream(), at<float>(from), 9, at<float>(to));
  numbers[9] = 0;
  EXPECT_EQ(get<float>(to), numbers);
}

TEST_F(CudaInstructions, RoundingToBf16) {
  // Ties to even in both directions, carries into the exponent, the largest numbers, subnormal ones, signs of zero.
  Words bits = {0x3f808000, 0x3f818000, 0x3f80c000, 0x3f807fff, 0x3fffffff, 0x7f7f7fff, 0x7f7f8000, 0x7f7fffff,
                0x7f800000, 0x00000000, 0x00000001, 0x00008000, 0x00018000, 0x007fffff, 0x00800000, 0x3f7f8000};
  for (std::uint32_t i = 0; i < 2000; ++i) bits.push_back(i * 2654435761u % 0x7f800000u);
  std::vector<float> x;
  for (const std::uint32_t one : bits)
    for (const std::uint32_t sign : {0u, 0x80000000u}) x.push_back(std::bit_cast<float>(one | sign));
  const int pairs = static_cast<int>(x.size()) / 2;
  const Tensor from = put(x), packed = put(Words(bits.size())), rounded = put(Words(bits.size())), powers = put(x);
  cuda::probe_numbers(stream(), pairs, at<float>(from), at<std::uint32_t>(packed), at<std::uint32_t>(rounded),
                      at<float>(powers));
  const Words by_instruction = get<std::uint32_t>(packed), by_arithmetic = get<std::uint32_t>(rounded);
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::uint32_t low = bf16_bits(x[2 * i]), expected = low | std::uint32_t{bf16_bits(x[2 * i + 1])} << 16;
    EXPECT_EQ(by_instruction[i], expected) << std::hex << bits[i];
    EXPECT_EQ(by_arithmetic[i], expected) << std::hex << bits[i];
  }
}

TEST_F(CudaInstructions, RoundingKeepsNaNAndPowersOfTwoAreGood) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> x = {std::nanf(""), -std::nanf(""), -kInfinity, kInfinity, 0, -0.0f, 1, -1, 127, -126, -1000, 200};
  for (int i = 0; i < 2000; ++i) x.push_back(static_cast<float>(-20.0 * i / 2000));
  const int pairs = static_cast<int>(x.size()) / 2;
  const Tensor from = put(x), packed = put(Words(x.size() / 2)), rounded = put(Words(x.size() / 2)), powers = put(x);
  cuda::probe_numbers(stream(), pairs, at<float>(from), at<std::uint32_t>(packed), at<std::uint32_t>(rounded),
                      at<float>(powers));
  const auto found = get<std::uint16_t>(packed), by_arithmetic = get<std::uint16_t>(rounded);
  const auto exponentials = get<float>(powers);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(std::isnan(bf16_value(found[i]))) << i;
    EXPECT_TRUE(std::isnan(bf16_value(by_arithmetic[i]))) << i;
    EXPECT_TRUE(std::isnan(exponentials[i])) << i;
  }
  EXPECT_EQ(exponentials[2], 0);
  EXPECT_EQ(exponentials[3], kInfinity);
  EXPECT_EQ(exponentials[10], 0);
  EXPECT_EQ(exponentials[11], kInfinity);
  for (std::size_t i = 4; i < x.size(); ++i) {
    if (i == 10 || i == 11) continue;
    const double expected = std::exp2(static_cast<double>(x[i]));
    EXPECT_NEAR(exponentials[i], expected, 4e-7 * expected) << x[i];
  }
}

TEST_F(CudaInstructions, ReductionsReachAllLanes) {
  std::vector<float> x(kLanes);
  for (int i = 0; i < kLanes; ++i) x[static_cast<std::size_t>(i)] = static_cast<float>(i * 7 % kLanes) - 40;
  const Tensor from = put(x), to = put(std::vector<float>(2 * kLanes));
  cuda::probe_reductions(stream(), at<float>(from), at<float>(to));
  const std::vector<float> found = get<float>(to);
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    EXPECT_EQ(found[2 * lane], 31 * 16 - 40 * kLanes) << lane;
    EXPECT_EQ(found[2 * lane + 1], -9) << lane;
  }
}

}  // namespace
}  // namespace fedpdpo
