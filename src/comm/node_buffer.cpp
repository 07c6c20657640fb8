// One allocation per node: a shared window owned by the node's rank 0, plain memory where a rank has the node alone.
#include <cstdlib>
#include <new>
#include <utility>

#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/core/error.hpp"
#include "handles.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t alignment = 64;

}  // namespace

struct NodeBuffer::Handle {
  Handle() = default;
  ~Handle() {
    if (own != nullptr) ::operator delete (own, std::align_val_t{alignment});
    if (window == MPI_WIN_NULL || mpi_is_finalized()) return;
    MPI_Win_unlock_all(window);
    MPI_Win_free(&window);
    MPI_Comm_free(&comm);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void* own = nullptr;
  MPI_Win window = MPI_WIN_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
};

NodeBuffer::NodeBuffer(const Communicator& node, std::size_t num_bytes) : handle_(std::make_unique<Handle>()) {
  if (node.size() == 1) {
    handle_->own = ::operator new (num_bytes, std::align_val_t{alignment});
    bytes_ = {static_cast<std::byte*>(handle_->own), num_bytes};
    return;
  }
  MPI_Comm_dup(node.handle_->comm, &handle_->comm);
  // MPI promises no alignment, and each rank maps the memory elsewhere: rank 0 says where its content begins.
  const MPI_Aint size = node.rank() == 0 ? static_cast<MPI_Aint>(num_bytes + alignment) : 0;
  void* ignored = nullptr;
  MPI_Win_allocate_shared(size, 1, MPI_INFO_NULL, handle_->comm, &ignored, &handle_->window);
  MPI_Aint root_size = 0;
  int unit = 0;
  void* base = nullptr;
  MPI_Win_shared_query(handle_->window, 0, &root_size, &unit, &base);
  const auto misaligned = [](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % alignment; };
  std::uint64_t offset = (alignment - misaligned(base)) % alignment;
  MPI_Bcast(&offset, 1, MPI_UINT64_T, 0, handle_->comm);
  std::byte* const begin = static_cast<std::byte*>(base) + offset;
  check(misaligned(begin) == 0, "the node's shared memory is mapped at an address of another alignment");
  bytes_ = {begin, num_bytes};
  MPI_Win_lock_all(MPI_MODE_NOCHECK, handle_->window);
}

NodeBuffer::~NodeBuffer() = default;

NodeBuffer::NodeBuffer(NodeBuffer&& other) noexcept
    : handle_(std::move(other.handle_)), bytes_(std::exchange(other.bytes_, {})) {}

NodeBuffer& NodeBuffer::operator=(NodeBuffer&& other) noexcept {
  handle_ = std::move(other.handle_);
  bytes_ = std::exchange(other.bytes_, {});
  return *this;
}

void NodeBuffer::fence() const {
  if (handle_->window == MPI_WIN_NULL) return;
  MPI_Win_sync(handle_->window);
  MPI_Barrier(handle_->comm);
  MPI_Win_sync(handle_->window);
}

}  // namespace fedpdpo
