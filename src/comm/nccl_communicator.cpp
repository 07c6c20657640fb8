// NCCL behind RAII. MPI hands its id around; everything else goes over NCCL's own connections, in the order of the
// backend's stream.
#include <chrono>
#include <exception>
#include <span>
#include <thread>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/error.hpp"
#include "nccl_library.hpp"

namespace fedpdpo {
namespace {

/// How long the host sleeps between two looks at the stream and at NCCL's state.
constexpr std::chrono::microseconds pause{20};

[[noreturn]] void fail(const NcclFunctions& nccl, ncclResult_t status, const char* call) {
  throw DeviceError(std::string("NCCL: ") + call + ": " + nccl.get_error_string(status) +
                    " (NCCL_DEBUG=WARN tells more, --aggregation host goes without NCCL)");
}

void check_nccl(const NcclFunctions& nccl, ncclResult_t status, const char* call) {
  if (status != ncclSuccess) [[unlikely]]
    fail(nccl, status, call);
}

}  // namespace

std::string nccl_version_text(const NcclFunctions& functions) {
  int code = 0;
  check_nccl(functions, functions.get_version(&code), "ncclGetVersion");
  const int major = code < 10000 ? 1000 : 10000;  // 2.8.4 is 2804, 2.9.6 is 20906
  return std::to_string(code / major) + "." + std::to_string(code % major / 100) + "." + std::to_string(code % 100);
}

const NcclStatus& nccl_status() { return nccl_library().status; }

struct NcclCommunicator::Handle {
  ~Handle() {
    if (comm == nullptr) return;
    // Where this rank gives up, the others may wait for it: leaving in order would wait for them.
    if (broken || std::uncaught_exceptions() > 0) {
      (void)nccl.comm_abort(comm);
    } else {
      (void)nccl.comm_destroy(comm);
    }
  }

  [[noreturn]] void give_up(ncclResult_t status, const char* call) {
    broken = true;
    fail(nccl, status, call);
  }

  const NcclFunctions& nccl;
  cudaStream_t stream;
  ncclComm_t comm = nullptr;
  bool broken = false;
};

NcclCommunicator::NcclCommunicator(const Communicator& group, const Backend& backend) {
  const NcclLibrary& library = nccl_library();
  if (!library.status.why_not.empty()) throw DeviceError("NCCL: " + library.status.why_not);
  check(backend.native_stream() != nullptr, "NCCL sums in the memory of CUDA devices");
  handle_.reset(new Handle{library.functions, static_cast<cudaStream_t>(backend.native_stream())});
  ncclUniqueId id{};
  if (group.rank() == 0) check_nccl(handle_->nccl, handle_->nccl.get_unique_id(&id), "ncclGetUniqueId");
  group.broadcast(std::as_writable_bytes(std::span(id.internal)), 0);
  check_nccl(handle_->nccl, handle_->nccl.comm_init_rank(&handle_->comm, group.size(), id, group.rank()),
             "ncclCommInitRank");
}

NcclCommunicator::~NcclCommunicator() = default;

void NcclCommunicator::sum(View values) {
  check(values.contiguous() && (values.dtype == DType::f32 || values.dtype == DType::i64),
        "NCCL sums contiguous f32 or i64");
  const ncclDataType_t type = values.dtype == DType::f32 ? ncclFloat32 : ncclInt64;
  const ncclResult_t status = handle_->nccl.all_reduce(
      values.data, values.data, static_cast<std::size_t>(values.size()), type, ncclSum, handle_->comm, handle_->stream);
  if (status != ncclSuccess) handle_->give_up(status, "ncclAllReduce");
}

/// A stream that waits for a lost rank never ends: NCCL's own state tells.
void NcclCommunicator::wait() {
  while (true) {
    const cudaError_t stream = cudaStreamQuery(handle_->stream);
    if (stream == cudaSuccess) return;
    if (stream != cudaErrorNotReady) {
      handle_->broken = true;
      throw DeviceError(std::string("CUDA: a sum over ranks failed: cudaStreamQuery: ") + cudaGetErrorName(stream) +
                        ", " + cudaGetErrorString(stream));
    }
    ncclResult_t state = ncclSuccess;
    ncclResult_t status = handle_->nccl.comm_get_async_error(handle_->comm, &state);
    if (status == ncclSuccess && state != ncclInProgress) status = state;
    if (status != ncclSuccess) handle_->give_up(status, "a sum over ranks");
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace fedpdpo
