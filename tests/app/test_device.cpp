// --device: which device a rank takes, and what is said where there is none.
#include "fedpdpo/app/device.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

const CudaDevices none = {{}, "no CUDA device: no driver"};
const CudaDevices two = {{{"H100", 1}, {"H200", 2}}, ""};

TEST(Device, RanksOfANodeTakeItsDevicesInTurn) {
  for (int rank = 0; rank < 5; ++rank) EXPECT_EQ(choose_device("cuda", two, rank, true).cuda, rank % 2);
  EXPECT_EQ(choose_device("cuda:1", two, 0, true).cuda, 1);
  EXPECT_EQ(choose_device("cuda:0", two, 3, true).cuda, 0);
  EXPECT_EQ(choose_device("cuda", two, 1, false).cuda, 1);
  EXPECT_EQ(choose_device("cpu", two, 1, true).cuda, std::nullopt);
  for (const char* wanted : {"cpu", "cuda", "cuda:1"}) EXPECT_EQ(choose_device(wanted, two, 0, true).line, "");
}

TEST(Device, AutoSaysWhatItTookAndWhy) {
  const DeviceChoice second = choose_device("auto", two, 3, true);
  EXPECT_EQ(second.cuda, 1);
  EXPECT_EQ(second.line, "device auto: cuda:1 (H200; every rank has a CUDA device)");
  const DeviceChoice without = choose_device("auto", none, 0, false);
  EXPECT_EQ(without.cuda, std::nullopt);
  EXPECT_EQ(without.line, "device auto: cpu (no CUDA device: no driver)");
  // All ranks compute on the same kind of device.
  const DeviceChoice mixed = choose_device("auto", two, 0, false);
  EXPECT_EQ(mixed.cuda, std::nullopt);
  EXPECT_EQ(mixed.line, "device auto: cpu (not every rank has a CUDA device)");
}

TEST(Device, WhatIsNotThereIsRefused) {
  EXPECT_INPUT_ERROR(choose_device("cuda", none, 0, false),
                     "--device: expected cpu or auto, found cuda (no CUDA device: no driver)");
  EXPECT_INPUT_ERROR(choose_device("cuda:0", none, 0, false), "found cuda:0 (no CUDA device: no driver)");
  EXPECT_INPUT_ERROR(choose_device("cuda:2", two, 0, true), "--device: expected cuda:0 to cuda:1, found cuda:2");
}

}  // namespace
}  // namespace fedpdpo
