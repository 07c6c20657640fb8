// Copies beside the work on the emulated device, whose streams run as late as events allow, or copies as early: what
// waits for what, and clients that are swapped.
#include <vector>

#include "cuda_runtime.h"
#include "emulation.hpp"
#include "fedpdpo/backend/cuda.hpp"
#include "train/client_store_model.hpp"

namespace fedpdpo {
namespace {

class EmulatedCopies : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { emulation::set_early_copies(GetParam()); }
  void TearDown() override {
    emulation::set_early_copies(false);
    emulation::set_device_memory(std::size_t{1} << 30);
  }
};

std::string named(const testing::TestParamInfo<bool>& info) { return info.param ? "Early" : "Late"; }

/// The emulation itself: an event is the work that its stream had when it was recorded, and orders nothing else.
TEST(EmulatedEvents, OrderWhatWasGivenBefore) {
  cudaStream_t a = nullptr, b = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking), cudaSuccess);
  cudaEvent_t event = nullptr, never = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&never, cudaEventDisableTiming), cudaSuccess);
  std::vector<int> order;
  const auto give = [&](cudaStream_t stream, int number) {
    emulation::enqueue(stream, [&, number] { order.push_back(number); });
  };
  give(a, 1);
  ASSERT_EQ(cudaEventRecord(event, a), cudaSuccess);
  give(a, 2);
  give(b, 10);
  ASSERT_EQ(cudaStreamWaitEvent(b, event, 0), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(b, never, 0), cudaSuccess);
  give(b, 11);
  ASSERT_EQ(cudaEventRecord(event, a), cudaSuccess);  // the wait above is for what it was
  ASSERT_EQ(cudaStreamSynchronize(b), cudaSuccess);
  EXPECT_EQ(order, (std::vector<int>{10, 1, 11}));
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  EXPECT_EQ(order, (std::vector<int>{10, 1, 11, 2}));
  give(b, 12);
  ASSERT_EQ(cudaStreamSynchronize(a), cudaSuccess);
  EXPECT_EQ(order.size(), 4u) << "a stream ran that nobody waited for";
  for (cudaStream_t stream : {a, b}) ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(order.back(), 12);
  ASSERT_EQ(cudaEventSynchronize(event), cudaSuccess);
  for (cudaEvent_t used : {event, never}) ASSERT_EQ(cudaEventDestroy(used), cudaSuccess);
}

TEST_P(EmulatedCopies, WaitForTheWorkBeforeThem) {
  const auto backend = make_cuda_backend({});
  Tensor x(*backend, 1, 1000);
  const auto pinned = backend->allocate_pinned(x.bytes());
  auto* const host = static_cast<float*>(pinned.get());
  EXPECT_EQ(host[999], 0);
  backend->fill(x.view(), 3);
  const CopyTicket out = backend->copy_to_host_async(host, x.view().data, x.bytes());
  backend->wait_for(out);  // or the next fill could be first
  backend->fill(x.view(), 4);
  backend->finish(out);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(host[i], 3) << i;
  EXPECT_EQ(backend->dot(x.view(), x.view()), 16'000);
}

TEST_P(EmulatedCopies, TheWorkWaitsForThemWhereItIsTold) {
  const auto backend = make_cuda_backend({});
  Tensor x(*backend, 1, 1000);
  const auto pinned = backend->allocate_pinned(x.bytes());
  auto* const host = static_cast<float*>(pinned.get());
  std::fill(host, host + 1000, 2.0f);
  backend->fill(x.view(), 1);
  const CopyTicket in = backend->copy_to_device_async(x.view().data, host, x.bytes());
  if (!GetParam()) {
    EXPECT_EQ(backend->squared_norm(x.view()), 1000) << "the emulation would not see a wait that is missing";
  }
  backend->wait_for(in);
  EXPECT_EQ(backend->squared_norm(x.view()), 4000);
  backend->wait_for({});
  backend->finish({});
}

TEST_P(EmulatedCopies, SteadySwappingMakesNothingAndWaitsForNothing) {
  const auto backend = make_cuda_backend({});
  test::StoreModel model(*backend, 6, 4);
  const auto round = [&] {
    for (std::size_t i = 0; i < 6; i += 2) {
      model.store->ensure(model.list({i, i + 1}), Access::train);
      model.store->prefetch(model.list({(i + 2) % 6, (i + 3) % 6}), Access::train);
      for (ClientState* client : model.list({i, i + 1}))
        backend->fill(model.store->buffers().values(*client), static_cast<float>(i));
    }
  };
  round();
  round();
  const emulation::Counts before = emulation::counts();
  round();
  EXPECT_EQ(emulation::counts().allocations, before.allocations);
  EXPECT_EQ(emulation::counts().waits, before.waits);
}

TEST_P(EmulatedCopies, SwappedClientsKeepTheirNumbers) {
  const auto backend = make_cuda_backend({});
  for (const int slots : {1, 2, 3, 5, 6})
    for (const std::uint64_t seed : {1, 2, 3}) {
      test::StoreModel model(*backend, 6, slots);
      model.act_at_random(100, seed);
    }
}

TEST_P(EmulatedCopies, MemoryIsWhatCanStillBeAllocated) {
  const auto backend = make_cuda_backend({});
  const auto before = backend->memory();
  ASSERT_TRUE(before.has_value());
  EXPECT_EQ(before->total, std::size_t{1} << 30);
  {
    const Tensor x(*backend, 1, 1 << 20);
    EXPECT_EQ(backend->memory()->free, before->free - (std::size_t{4} << 20));
  }
  EXPECT_EQ(backend->memory()->free, before->free);
  emulation::set_device_memory(std::size_t{64} << 20);
  EXPECT_THROW(Tensor(*backend, 1, 64 << 20), OutOfDeviceMemory);
}

INSTANTIATE_TEST_SUITE_P(, EmulatedCopies, testing::Bool(), named);

}  // namespace
}  // namespace fedpdpo
