// NCCL in a build without it: it cannot be used, and says why.
#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/comm/nccl.hpp"

namespace fedpdpo {

const NcclStatus& nccl_status() {
  static const NcclStatus status{{}, "this program was built without NCCL"};
  return status;
}

struct NcclCommunicator::Handle {};

NcclCommunicator::NcclCommunicator(const Communicator&, const Backend&) {
  throw DeviceError("NCCL: " + nccl_status().why_not);
}
NcclCommunicator::~NcclCommunicator() = default;
void NcclCommunicator::sum(View) {}
void NcclCommunicator::wait() {}

}  // namespace fedpdpo
