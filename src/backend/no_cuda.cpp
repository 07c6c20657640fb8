// The CUDA backend's factory in a build without CUDA: there are no devices, and it says why.
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo {

CudaDevices cuda_devices() { return {{}, "this build has no CUDA backend"}; }

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions&) { throw DeviceError(cuda_devices().why_none); }

}  // namespace fedpdpo
