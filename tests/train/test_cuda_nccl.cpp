// The real NCCL where there is one: a communicator of a single rank, which needs no second device, takes the way of
// all.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/comm/nccl.hpp"

namespace fedpdpo {
namespace {

template <class Number>
void expect_own_sum(Backend& backend, NcclCommunicator& nccl, DType dtype, const std::vector<Number>& numbers) {
  const Tensor sums(backend, 1, static_cast<std::int64_t>(numbers.size()), dtype);
  backend.copy_to_device(sums.view().data, numbers.data(), sums.bytes());
  nccl.sum(sums.view());
  nccl.wait();
  std::vector<Number> found(numbers.size());
  backend.copy_to_host(found.data(), sums.view().data, sums.bytes());
  EXPECT_EQ(found, numbers);
}

TEST(CudaNccl, OneRankSumsItsOwn) {
  if (const CudaDevices here = cuda_devices(); here.devices.empty()) GTEST_SKIP() << here.why_none;
  if (!nccl_status().why_not.empty()) GTEST_SKIP() << nccl_status().why_not;
  const MpiSession session(nullptr, nullptr);
  const Communicator world = Communicator::world();
  ASSERT_EQ(world.size(), 1) << "without mpirun";
  const auto backend = make_cuda_backend({});
  NcclCommunicator nccl(world, *backend);
  std::vector<float> floats(1 << 20);
  std::vector<std::int64_t> integers(1 << 20);
  for (std::size_t i = 0; i < floats.size(); ++i) {
    floats[i] = 0.1f * static_cast<float>(i);
    integers[i] = std::numeric_limits<std::int64_t>::min() + static_cast<std::int64_t>(i * i);
  }
  expect_own_sum(*backend, nccl, DType::f32, floats);
  expect_own_sum(*backend, nccl, DType::i64, integers);
}

}  // namespace
}  // namespace fedpdpo
