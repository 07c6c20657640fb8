// What work on a device fails with, for tests.
#pragma once

#include <string>

#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo {

/// The line of the DeviceError that `work` throws.
template <class Work>
std::string device_error(Work work) {
  try {
    work();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace fedpdpo
