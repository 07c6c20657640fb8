// cuBLASLt opened at run time, in builds with CUDA: the real library has every function, and what is said without it.
#include <gtest/gtest.h>

#include "cuda/cublas_lt.hpp"
#include "fedpdpo/backend/cuda.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::cuda {
namespace {

std::string refusal(const std::string& candidate) {
  try {
    (void)open_cublas_lt(std::vector{candidate});
  } catch (const DeviceError& error) {
    EXPECT_TRUE(test::is_one_line(error.what())) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no DeviceError";
  return {};
}

TEST(CublasLtLibrary, WithoutTheLibraryTheErrorSaysWhatWasLookedFor) {
  EXPECT_EQ(refusal("/absent/libcublasLt.so.13"),
            "cuBLASLt: no such library could be opened: looked for /absent/libcublasLt.so.13; --device cpu needs none");
}

TEST(CublasLtLibrary, AnotherLibraryLacksItsFunctions) {
  EXPECT_EQ(refusal("libm.so.6"),
            "cuBLASLt: libm.so.6 has no cublasLtGetStatusName: another version?; --device cpu needs none");
}

TEST(CublasLtLibrary, TheRealLibraryHasEveryFunction) {
  try {
    EXPECT_STREQ(cublas_lt().get_status_name(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
  } catch (const DeviceError& error) {
    GTEST_SKIP() << error.what();
  }
  // What needs no device: descriptors are made and unmade.
  cublasLtMatrixLayout_t layout = nullptr;
  ASSERT_EQ(cublas_lt().layout_create(&layout, CUDA_R_32F, 3, 2, 3), CUBLAS_STATUS_SUCCESS);
  const std::uint64_t cols = 5;
  EXPECT_EQ(cublas_lt().layout_set_attribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof cols),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(cublas_lt().layout_destroy(layout), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace fedpdpo::cuda
