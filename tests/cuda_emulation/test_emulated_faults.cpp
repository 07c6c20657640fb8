// What a device would fault at or get wrong by chance, and the emulation must see always: packs at odd addresses; and,
// in builds with FEDPDPO_RACES, an access of one thread of a block that no barrier orders with another's, whatever way
// it is made, and nothing where there is a barrier.
#include <gtest/gtest.h>

#include <cstdlib>

#include "cuda/elements.hpp"
#include "cuda/mma.cuh"
#include "emulation.hpp"

namespace fedpdpo::cuda {
namespace {

constexpr unsigned kBlock = 64;
enum class Way { barrier, none, warp_barrier, shuffle };

void meet(Way way) {
  if (way == Way::barrier) __syncthreads();
  if (way == Way::warp_barrier) __syncwarp();
  if (way == Way::shuffle) __shfl_xor_sync(0xffffffffu, 1, 1);
}

/// Thread i reads what thread i ^ `distance` has written.
void plain_kernel(unsigned distance, Way way) {
  auto* const memory = reinterpret_cast<volatile unsigned*>(block_memory());
  memory[threadIdx.x] = threadIdx.x;
  meet(way);
  const volatile unsigned found = memory[threadIdx.x ^ distance];
  (void)found;
}

/// The same of rows of 16 bytes, and their way into registers.
void matrix_kernel(unsigned distance, Way way) {
  unsigned char* const memory = block_memory();
  store_as(memory + 16 * threadIdx.x, std::uint64_t{threadIdx.x});
  store_as(memory + 16 * threadIdx.x + 8, std::uint64_t{0});
  meet(way);
  std::uint32_t to[4];
  ldmatrix_x4(to, memory + 16 * (threadIdx.x ^ distance));
}

/// The same of asynchronous copies, which have arrived, but for the thread alone that waited.
alignas(16) unsigned char source[16 * kBlock];
void copy_kernel(unsigned distance, Way way) {
  unsigned char* const memory = block_memory();
  cp_async_16(memory + 16 * threadIdx.x, source + 16 * threadIdx.x, true);
  cp_async_wait_all();
  meet(way);
  const volatile auto found = load_as<std::uint64_t>(memory + 16 * (threadIdx.x ^ distance));
  (void)found;
}

/// A block that writes where its neighbour does.
volatile unsigned taken = 0;
void one_place_kernel(unsigned, Way) {
  if (threadIdx.x == blockIdx.x) taken = threadIdx.x;
}

using Kernel = void (*)(unsigned, Way);

/// Ends with the sanitizer's exit code where it has seen a race.
[[noreturn]] void run(Kernel kernel, unsigned distance, Way way, unsigned blocks = 1) {
  emulation::run_grid(dim3(blocks), dim3(kBlock), 16 * kBlock, [&] { kernel(distance, way); });
  std::exit(0);
}

class EmulatedRaces : public testing::Test {
 protected:
  void SetUp() override {
    if (!emulation::sees_races()) GTEST_SKIP() << "a build without FEDPDPO_RACES";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
  static constexpr int kRace = 66;
};

TEST_F(EmulatedRaces, AreSeenBetweenWarpsAndWithinOne) {
  for (const Kernel kernel : {plain_kernel, matrix_kernel, copy_kernel}) {
    EXPECT_EXIT(run(kernel, 32, Way::barrier), testing::ExitedWithCode(0), "");
    EXPECT_EXIT(run(kernel, 32, Way::none), testing::ExitedWithCode(kRace), "data race");
    EXPECT_EXIT(run(kernel, 32, Way::warp_barrier), testing::ExitedWithCode(kRace), "data race");
    EXPECT_EXIT(run(kernel, 1, Way::warp_barrier), testing::ExitedWithCode(0), "");
    EXPECT_EXIT(run(kernel, 1, Way::none), testing::ExitedWithCode(kRace), "data race");
    EXPECT_EXIT(run(kernel, 1, Way::shuffle), testing::ExitedWithCode(kRace), "data race");  // it orders no memory
  }
}

TEST_F(EmulatedRaces, AreSeenBetweenBlocks) {
  EXPECT_EXIT(run(one_place_kernel, 0, Way::none, 2), testing::ExitedWithCode(kRace), "data race");
}

TEST(EmulatedFaults, PacksAtOddAddressesEndTheTest) {
  alignas(16) float numbers[12] = {};
  const auto first_of_pack = [&](int at) { return Elements<const float>{numbers, 4}.load<kPack>(1, at).v[0]; };
  EXPECT_EQ(first_of_pack(0), 0);
  EXPECT_DEATH(std::exit(first_of_pack(1) > 0 ? 1 : 0), "misaligned address");
}

}  // namespace
}  // namespace fedpdpo::cuda
