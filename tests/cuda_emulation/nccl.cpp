// Emulated NCCL. The id names the rank that made it, which tells the others who is among them; it refuses two ranks on
// one device, as NCCL does.
#define OMPI_SKIP_MPICXX 1
#include "nccl.h"

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/nccl_library.hpp"
#include "emulation.hpp"

struct EmulatedNccl {
  MPI_Comm ranks = MPI_COMM_NULL;
  std::shared_ptr<bool> aborted = std::make_shared<bool>(false);  // work that has not run by then never runs
};

namespace {

struct Id {
  int root;
  int serial;
};

ncclResult_t next_state = ncclSuccess, next_call = ncclSuccess;
emulation::NcclCounts counted;

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// World ranks by rank, or none where two share a device.
std::vector<int> meet(const Id& id, int num_ranks, int rank, int tag) {
  const int mine[] = {rank, world_rank(), emulation::current_device()};
  std::vector<int> members(static_cast<std::size_t>(num_ranks));
  if (rank != 0) {
    MPI_Send(mine, 3, MPI_INT, id.root, tag, MPI_COMM_WORLD);
    MPI_Recv(members.data(), num_ranks, MPI_INT, id.root, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
  } else {
    members[0] = mine[1];
    std::vector<int> devices{mine[2]};
    for (int i = 1; i < num_ranks; ++i) {
      int theirs[3];
      MPI_Recv(theirs, 3, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      members[static_cast<std::size_t>(theirs[0])] = theirs[1];
      devices.push_back(theirs[2]);
    }
    const std::vector<int> answer_to = members;
    std::sort(devices.begin(), devices.end());
    if (std::adjacent_find(devices.begin(), devices.end()) != devices.end()) members[0] = -1;
    for (int i = 1; i < num_ranks; ++i)
      MPI_Send(members.data(), num_ranks, MPI_INT, answer_to[static_cast<std::size_t>(i)], tag, MPI_COMM_WORLD);
  }
  return members[0] < 0 ? std::vector<int>{} : members;
}

}  // namespace

namespace emulation {

void set_nccl_state(NcclState state) {
  next_state = state == NcclState::remote_error ? ncclRemoteError : ncclSuccess;
  next_call = state == NcclState::refuses ? ncclSystemError : ncclSuccess;
}
NcclCounts nccl_counts() { return counted; }

}  // namespace emulation

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t status) {
  switch (status) {
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "an emulated error";
  }
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int serial = 0;
  const Id made{world_rank(), serial++};
  std::memcpy(id->internal, &made, sizeof made);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int num_ranks, ncclUniqueId id, int rank) {
  if (next_call != ncclSuccess) return next_call;
  Id read{};
  std::memcpy(&read, id.internal, sizeof read);
  const int tag = 1000 + read.serial % 10000;
  const std::vector<int> members = meet(read, num_ranks, rank, tag);
  if (members.empty()) return ncclInvalidUsage;
  MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &all);
  MPI_Group_incl(all, num_ranks, members.data(), &some);
  *comm = new EmulatedNccl;
  MPI_Comm_create_group(MPI_COMM_WORLD, some, tag, &(*comm)->ranks);
  MPI_Group_free(&some);
  MPI_Group_free(&all);
  ++counted.communicators;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  *state = next_state;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  MPI_Comm_free(&comm->ranks);
  delete comm;
  --counted.communicators;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++counted.aborts;
  *comm->aborted = true;
  return ncclCommDestroy(comm);
}
ncclResult_t ncclAllReduce(const void* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t comm, cudaStream_t stream) {
  if (next_call != ncclSuccess) return next_call;
  if (from != to || operation != ncclSum || count > INT32_MAX) return ncclInvalidArgument;
  ++counted.sums;
  emulation::enqueue(stream, [to, count, type, ranks = comm->ranks, aborted = comm->aborted] {
    if (*aborted) return;
    MPI_Allreduce(MPI_IN_PLACE, to, static_cast<int>(count), type == ncclInt64 ? MPI_INT64_T : MPI_FLOAT, MPI_SUM,
                  ranks);
  });
  return ncclSuccess;
}

namespace fedpdpo {

const NcclLibrary& nccl_library() {
  static const NcclFunctions functions{ncclGetVersion,        ncclGetErrorString, ncclGetUniqueId, ncclCommInitRank,
                                       ncclCommGetAsyncError, ncclCommDestroy,    ncclCommAbort,   ncclAllReduce};
  static const NcclLibrary library{functions, {nccl_version_text(functions), {}}};
  return library;
}

}  // namespace fedpdpo
