// libnccl.so.2, loaded at run time.
#include "nccl_library.hpp"

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/shared_library.hpp"

namespace fedpdpo {
namespace {

NcclFunctions functions_of(const SharedLibrary& library) {
  return {library.function<decltype(ncclGetVersion)>("ncclGetVersion"),
          library.function<decltype(ncclGetErrorString)>("ncclGetErrorString"),
          library.function<decltype(ncclGetUniqueId)>("ncclGetUniqueId"),
          library.function<decltype(ncclCommInitRank)>("ncclCommInitRank"),
          library.function<decltype(ncclCommGetAsyncError)>("ncclCommGetAsyncError"),
          library.function<decltype(ncclCommDestroy)>("ncclCommDestroy"),
          library.function<decltype(ncclCommAbort)>("ncclCommAbort"),
          library.function<decltype(ncclAllReduce)>("ncclAllReduce")};
}

NcclLibrary load() {
  try {
    // Never closed: NCCL's threads may outlive main.
    static const auto* const library = new SharedLibrary(library_candidates("libnccl.so.2", cuda_library_folders()));
    const NcclFunctions functions = functions_of(*library);
    return {functions, {nccl_version_text(functions), {}}};
  } catch (const SharedLibraryError& error) {
    return {{}, {{}, std::string("libnccl.so.2: ") + error.what()}};
  } catch (const DeviceError& error) {
    return {{}, {{}, error.what()}};
  }
}

}  // namespace

const NcclLibrary& nccl_library() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace fedpdpo
