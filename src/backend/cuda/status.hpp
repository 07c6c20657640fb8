// Every CUDA and cuBLAS status is looked at here: a failure becomes one line with the call's name and what it means for
// the run (out of memory, device lost, kernel failed, kernel not launched).
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

namespace fedpdpo::cuda {

/// DeviceError (OutOfDeviceMemory where it is that) where `status` is a failure; `call` names what was asked for.
void check_cuda(cudaError_t status, const char* call);
void check_cublas(cublasStatus_t status, const char* call);

}  // namespace fedpdpo::cuda
