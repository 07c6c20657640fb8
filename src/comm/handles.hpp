// What the public types hide: an MPI communicator that is freed with its owner. The one place that includes mpi.h,
// without the C++ bindings that MPI libraries of long standing still drag in.
#pragma once

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

/// Objects that outlive MPI_Finalize have nothing to free.
inline bool mpi_is_finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0;
}

struct Communicator::Handle {
  explicit Handle(MPI_Comm taken) : comm(taken) {}
  ~Handle() {
    if (!mpi_is_finalized()) MPI_Comm_free(&comm);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  MPI_Comm comm;
};

}  // namespace fedpdpo
