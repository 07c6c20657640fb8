// One line for every failure of CUDA and cuBLAS.
#include <string>

#include "cuda/cublas_lt.hpp"
#include "cuda/status.hpp"
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo::cuda {
namespace {

const char* meaning(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "out of device memory";
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
      return "no such device";
    case cudaErrorDevicesUnavailable:
      return "the device lets no more processes in, or cannot be used (nvidia-smi shows its compute mode)";
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorSystemNotReady:
    case cudaErrorUnknown:
      return "the device is lost";
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorAssert:
      return "a kernel failed (FEDPDPO_CUDA_CHECK=1 names the operation)";
    case cudaErrorNoKernelImageForDevice:
      return "this build has no code for the device (sm_80 and sm_90)";
    case cudaErrorInvalidConfiguration:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidDeviceFunction:
      return "the kernel could not be launched";
    default:
      return "failed";
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  const std::string line = std::string("CUDA: ") + meaning(status) + ": " + call + ": " + cudaGetErrorName(status) +
                           ", " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) throw OutOfDeviceMemory(line);
  throw DeviceError(line);
}

void check_cublas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  const char* what = status == CUBLAS_STATUS_ALLOC_FAILED       ? "out of device memory"
                     : status == CUBLAS_STATUS_EXECUTION_FAILED ? "a kernel failed"
                     : status == CUBLAS_STATUS_NOT_INITIALIZED  ? "the device cannot be used"
                                                                : "failed";
  const std::string line = std::string("cuBLASLt: ") + what + ": " + call + ": " + cublas_lt().get_status_name(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfDeviceMemory(line);
  throw DeviceError(line);
}

}  // namespace fedpdpo::cuda
