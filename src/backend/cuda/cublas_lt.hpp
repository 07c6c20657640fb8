// The functions of cuBLASLt that products use, found in the library when the first backend is made: the program starts
// where there is no CUDA.
#pragma once

#include <cublasLt.h>

#include <span>
#include <string>

#include "fedpdpo/core/shared_library.hpp"

namespace fedpdpo::cuda {

struct CublasLt {
  decltype(&cublasLtGetStatusName) get_status_name;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) product_create;
  decltype(&cublasLtMatmulDescDestroy) product_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) product_set_attribute;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set_attribute;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set_attribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmul) matmul;
};

struct OpenCublasLt {
  SharedLibrary library;
  CublasLt functions;
};

/// DeviceError where no candidate opens, or it lacks a function.
OpenCublasLt open_cublas_lt(std::span<const std::string> candidates);

/// The library of the headers' major version where CUDA usually lies, opened at the first call for the life of the
/// process. DeviceError as above.
const CublasLt& cublas_lt();

}  // namespace fedpdpo::cuda
