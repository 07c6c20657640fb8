// The functions of NCCL that are used, as the library that was loaded has them.
#pragma once

#include <nccl.h>

#include "fedpdpo/comm/nccl.hpp"

namespace fedpdpo {

struct NcclFunctions {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRank) comm_init_rank = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
};

/// All of them, or none and why.
struct NcclLibrary {
  NcclFunctions functions;
  NcclStatus status;
};

/// DeviceError where the library does not tell it.
std::string nccl_version_text(const NcclFunctions& functions);

/// Loaded at the first call.
const NcclLibrary& nccl_library();

}  // namespace fedpdpo
