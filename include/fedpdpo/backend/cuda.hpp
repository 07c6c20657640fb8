// The CUDA backend's factory, without any CUDA header: where the program is built without CUDA, the same functions say
// so. Weights in f32 or bf16 as on the CPU; products with f32 weights are fp32 (no TF32), bf16 weights take activations
// in bf16 or rounded to it; all sums are fp32 or wider and in a fixed order, without float atomics: the same call gives
// the same bits.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

/// A device failed: out of its memory, lost, a kernel that did not run, NaN in a checked output. One line, exit code 1.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The device has not so much memory free. What was asked for was not given; the backend goes on.
class OutOfDeviceMemory : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

struct CudaDevice {
  std::string name;
  std::size_t memory_bytes = 0;
};

struct CudaDevices {
  std::vector<CudaDevice> devices;  ///< by index
  std::string why_none;             ///< where there are none: the driver's reason, or that this build has no CUDA
};

CudaDevices cuda_devices();

/// What fp32 factors of a client's own large products (its head, its bottleneck) are rounded to; sums are fp32.
enum class ClientProducts : std::uint8_t { fp32, tf32 };

struct CudaOptions {
  int device = 0;
  ClientProducts products = ClientProducts::fp32;
  /// Debug mode: waits for every operation, so that a failing kernel is named, and looks for NaN in all that it wrote.
  /// The environment variable FEDPDPO_CUDA_CHECK=1 turns it on, too.
  bool check_outputs = false;
};

/// One stream on one device; used by the thread that made it, and no other. Attention takes head_dim up to 256. Indices
/// (tokens, positions, rows, targets) lie in device memory and are not looked at. DeviceError where the device cannot
/// be used.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

}  // namespace fedpdpo
