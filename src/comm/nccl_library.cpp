// libnccl.so.2, loaded at run time.
#include "nccl_library.hpp"

#include <exception>

#include "fedpdpo/core/shared_library.hpp"

namespace fedpdpo {
namespace {

NcclLibrary load() {
  NcclLibrary loaded;
  try {
    const SharedLibrary library("libnccl.so.2");
    NcclFunctions& functions = loaded.functions;
    library.get(functions.get_version, "ncclGetVersion");
    library.get(functions.get_error_string, "ncclGetErrorString");
    library.get(functions.get_unique_id, "ncclGetUniqueId");
    library.get(functions.comm_init_rank, "ncclCommInitRank");
    library.get(functions.comm_get_async_error, "ncclCommGetAsyncError");
    library.get(functions.comm_destroy, "ncclCommDestroy");
    library.get(functions.comm_abort, "ncclCommAbort");
    library.get(functions.all_reduce, "ncclAllReduce");
    loaded.status.version = nccl_version_text(functions);
  } catch (const std::exception& error) {
    loaded = {{}, {{}, error.what()}};
  }
  return loaded;
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace fedpdpo
