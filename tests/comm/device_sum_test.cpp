// Sums in a backend's memory, here the CPU's, which every operation is compared with: the bits of ExactSum, wherever
// the terms lie. Over ranks: tests/cuda_emulation/test_emulated_nccl.cpp.
#include "fedpdpo/comm/device_sum.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/random.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {
namespace {

class DeviceSums : public testing::Test {
 protected:
  /// Those at even places are in the backend's memory, the others on the host.
  std::vector<SumTerm> terms_of(const std::vector<std::vector<float>>& values, const std::vector<double>& weights) {
    std::vector<SumTerm> terms;
    for (std::size_t i = 0; i < values.size(); ++i) {
      Tensor& tensor = tensors_.emplace_back(*backend_, 1, static_cast<std::int64_t>(values[i].size()));
      backend_->copy_to_device(tensor.view().data, values[i].data(), tensor.bytes());
      const bool resident = i % 2 == 0;
      terms.push_back({resident ? ConstView(tensor.view()) : ConstView{},
                       resident ? std::span<const float>{} : values[i], weights[i]});
    }
    return terms;
  }
  std::vector<std::uint32_t> on_host(const std::vector<std::vector<float>>& values, const std::vector<double>& weights,
                                     const std::vector<std::size_t>& blocks) {
    ExactSum sum(blocks, static_cast<int>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_TRUE(sum.observe(values[i], weights[i]));
    sum.agree(self_);
    for (std::size_t i = 0; i < values.size(); ++i) sum.add(values[i], weights[i]);
    std::vector<float> result(blocks.back());
    sum.reduce(self_, result);
    return bits_of(result);
  }
  static std::vector<std::uint32_t> bits_of(std::span<const float> values) {
    std::vector<std::uint32_t> bits;
    for (const float value : values) bits.push_back(std::bit_cast<std::uint32_t>(value));
    return bits;
  }

  Communicator self_ = *Communicator::world().split(Communicator::world().rank());
  std::unique_ptr<Backend> backend_ = make_cpu_backend({});
  std::vector<Tensor> tensors_;
};

TEST_F(DeviceSums, HaveTheBitsOfTheHosts) {
  RandomStream random({.seed = 31, .purpose = Purpose::test});
  const std::vector<std::size_t> blocks{0, 1, 1, 300, 301, 2000};
  for (const std::size_t count : {1, 2, 7}) {
    std::vector<std::vector<float>> values(count);
    std::vector<double> weights;
    for (auto& v : values) {
      for (std::size_t i = 0; i < blocks.back(); ++i)
        v.push_back(static_cast<float>(std::ldexp(random.normal(), static_cast<int>(random.below(60)) - 30)));
      v[300] = -0.0f;
      weights.push_back(random.uniform());
    }
    DeviceSum sum(*backend_, blocks, nullptr);
    const std::vector<SumTerm> terms = terms_of(values, weights);
    std::vector<float> result(blocks.back(), -1.0f);
    sum.exact(self_, terms, sum.peaks(terms), static_cast<int>(count), result);
    EXPECT_EQ(bits_of(result), on_host(values, weights, blocks)) << count;
    std::vector<float> fast(blocks.back(), -1.0f);
    sum.fast(terms, fast);
    for (std::size_t i = 0; i < fast.size(); ++i) {
      double expected = 0, size = 0;
      for (std::size_t t = 0; t < count; ++t) {
        expected += weights[t] * static_cast<double>(values[t][i]);
        size += std::abs(weights[t] * static_cast<double>(values[t][i]));
      }
      EXPECT_NEAR(fast[i], expected, 1e-6 * size) << i;
    }
  }
}

TEST_F(DeviceSums, PeaksShowWhatIsNotFinite) {
  DeviceSum sum(*backend_, {0, 2, 3}, nullptr);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const auto peaks = sum.peaks(terms_of({{1, -3, 0}, {nan, 2, 1}, {4, 0.5f, -infinity}}, {1, 1, 1}));
  EXPECT_EQ(peaks[0], (std::vector<float>{3, 0}));
  EXPECT_TRUE(std::isnan(peaks[1][0]));
  EXPECT_EQ(peaks[1][1], 1);
  EXPECT_EQ(peaks[2], (std::vector<float>{4, infinity}));
  EXPECT_TRUE(sum.peaks({}).empty());
}

TEST_F(DeviceSums, NothingSumsToZero) {
  DeviceSum sum(*backend_, {0, 2}, nullptr);
  std::vector<float> result(2, 5.0f);
  sum.exact(self_, {}, {}, 3, result);
  EXPECT_EQ(result, (std::vector<float>{0, 0}));
}

TEST_F(DeviceSums, Contracts) {
  EXPECT_CONTRACT_VIOLATION(DeviceSum(*backend_, {1, 2}, nullptr), "begin with 0");
  DeviceSum sum(*backend_, {0, 2}, nullptr);
  const auto terms = terms_of({{1, 2}, {3, 4, 5}}, {1, 1});
  EXPECT_CONTRACT_VIOLATION(sum.peaks(terms), "length");
  std::vector<float> result(2);
  EXPECT_CONTRACT_VIOLATION(sum.exact(self_, std::span(terms).first(1), {}, 1, result), "peaks of every term");
  const std::vector<std::vector<float>> broken{{std::numeric_limits<float>::infinity()}};
  EXPECT_CONTRACT_VIOLATION(sum.exact(self_, std::span(terms).first(1), broken, 1, result), "finite");
}

/// Either it is there and tells its version, or there is one line that says why not.
TEST(Nccl, IsLoadedOrSaysWhyNot) {
  const NcclStatus& status = nccl_status();
  EXPECT_NE(status.version.empty(), status.why_not.empty());
  if (status.why_not.empty()) {
    EXPECT_TRUE(status.version.starts_with("2.")) << status.version;
  } else {
    EXPECT_TRUE(status.why_not.find("libnccl.so.2") != std::string::npos ||
                status.why_not == "this program was built without NCCL")
        << status.why_not;
  }
  EXPECT_EQ(&nccl_status(), &status);
}

TEST(Nccl, IsNotForTheHostsMemory) {
  const std::unique_ptr<Backend> cpu = make_cpu_backend({});
  EXPECT_EQ(cpu->device_identity(), "");
  EXPECT_ANY_THROW(NcclCommunicator(Communicator::world(), *cpu));
}

}  // namespace
}  // namespace fedpdpo::test
