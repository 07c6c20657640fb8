// libcublasLt.so by dlopen. (The emulated device has its own table.)
#include <string>
#include <utility>

#include "cuda/cublas_lt.hpp"
#include "fedpdpo/backend/cuda.hpp"

// The name in the header is the symbol, and gives its type.
#define FEDPDPO_FUNCTION(name) library.function<decltype(name)>(#name)

namespace fedpdpo::cuda {
namespace {

CublasLt functions_of(const SharedLibrary& library) {
  return {.get_status_name = FEDPDPO_FUNCTION(cublasLtGetStatusName),
          .create = FEDPDPO_FUNCTION(cublasLtCreate),
          .destroy = FEDPDPO_FUNCTION(cublasLtDestroy),
          .product_create = FEDPDPO_FUNCTION(cublasLtMatmulDescCreate),
          .product_destroy = FEDPDPO_FUNCTION(cublasLtMatmulDescDestroy),
          .product_set_attribute = FEDPDPO_FUNCTION(cublasLtMatmulDescSetAttribute),
          .layout_create = FEDPDPO_FUNCTION(cublasLtMatrixLayoutCreate),
          .layout_destroy = FEDPDPO_FUNCTION(cublasLtMatrixLayoutDestroy),
          .layout_set_attribute = FEDPDPO_FUNCTION(cublasLtMatrixLayoutSetAttribute),
          .preference_create = FEDPDPO_FUNCTION(cublasLtMatmulPreferenceCreate),
          .preference_destroy = FEDPDPO_FUNCTION(cublasLtMatmulPreferenceDestroy),
          .preference_set_attribute = FEDPDPO_FUNCTION(cublasLtMatmulPreferenceSetAttribute),
          .get_heuristic = FEDPDPO_FUNCTION(cublasLtMatmulAlgoGetHeuristic),
          .matmul = FEDPDPO_FUNCTION(cublasLtMatmul)};
}

}  // namespace

#undef FEDPDPO_FUNCTION

OpenCublasLt open_cublas_lt(std::span<const std::string> candidates) {
  try {
    SharedLibrary library(candidates);
    const CublasLt functions = functions_of(library);
    return {std::move(library), functions};
  } catch (const SharedLibraryError& error) {
    throw DeviceError(std::string("cuBLASLt: ") + error.what() + "; --device cpu needs none");
  }
}

const CublasLt& cublas_lt() {
  // Another major version has other enumerators. Never closed: the library has exit handlers of its own.
  static const OpenCublasLt* const opened = new OpenCublasLt(
      open_cublas_lt(library_candidates("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR), cuda_library_folders())));
  return opened->functions;
}

}  // namespace fedpdpo::cuda
