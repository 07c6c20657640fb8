// Sums over ranks in device memory by NCCL, without its header: where the program is built without NCCL, the same
// functions say so. The library is loaded when it is first asked for; the program starts without it.
#pragma once

#include <memory>
#include <string>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

/// What this process can load.
struct NcclStatus {
  std::string version;  ///< "2.28.9"
  std::string why_not;  ///< empty where NCCL can be used
};

const NcclStatus& nccl_status();

/// The ranks of a group, each with a CUDA device of its own. Work goes to the backends' streams. DeviceError, one line,
/// where NCCL fails or another rank is lost.
class NcclCommunicator {
 public:
  /// Collective over the group. The backend outlives it.
  NcclCommunicator(const Communicator& group, const Backend& backend);
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Collective: all-reduce in place of contiguous f32 or i64 in device memory; does not wait. i64 is added modulo
  /// 2^64; f32 in an order that is NCCL's.
  void sum(View values);
  /// Waits for all work given to the backend, and for the other ranks' part in it.
  void wait();

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

}  // namespace fedpdpo
