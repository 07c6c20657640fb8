// What the public types hide: an MPI communicator that is freed with its owner. The one place that includes mpi.h,
// without the C++ bindings that MPI libraries of long standing still drag in.
#pragma once

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <span>

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
    if (mpi_is_finalized()) return;
    drop_hierarchy();
    MPI_Comm_free(&comm);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void drop_hierarchy() {
    for (MPI_Comm* part : {&node, &leaders})
      if (*part != MPI_COMM_NULL) MPI_Comm_free(part);
  }
  /// In place, by the route that the communicator has.
  template <class T>
  void all_reduce(std::span<T> values, MPI_Datatype type, MPI_Op operation) const;

  MPI_Comm comm;
  // Hierarchical reduction; null where it is flat. Only the first rank of a node is among the leaders.
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm leaders = MPI_COMM_NULL;
};

}  // namespace fedpdpo
