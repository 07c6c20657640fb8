// The MPI session and the collectives. Errors are fatal inside MPI (its default), so return codes are not read.
#include "fedpdpo/comm/communicator.hpp"

#include <cstdlib>
#include <numeric>
#include <utility>

#include "chunks.hpp"
#include "fedpdpo/core/error.hpp"
#include "handles.hpp"

namespace fedpdpo {
namespace {

constexpr int gather_tag = 1;

std::vector<std::uint64_t> all_sizes(MPI_Comm comm, int num_ranks, std::size_t own) {
  const std::uint64_t size = own;
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(num_ranks));
  MPI_Allgather(&size, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, comm);
  return sizes;
}

}  // namespace

template <class T>
void Communicator::Handle::all_reduce(std::span<T> values, MPI_Datatype type, MPI_Op operation) const {
  for_each_piece(values, [&](T* data, int count) {
    if (node == MPI_COMM_NULL) {
      MPI_Allreduce(MPI_IN_PLACE, data, count, type, operation, comm);
      return;
    }
    if (leaders != MPI_COMM_NULL) {
      MPI_Reduce(MPI_IN_PLACE, data, count, type, operation, 0, node);
      MPI_Allreduce(MPI_IN_PLACE, data, count, type, operation, leaders);
    } else {
      MPI_Reduce(data, nullptr, count, type, operation, 0, node);
    }
    MPI_Bcast(data, count, type, 0, node);
  });
}

MpiSession::MpiSession(int* argc, char*** argv) {
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  check(provided >= MPI_THREAD_FUNNELED, "this MPI library cannot be used by a program with threads");
}

MpiSession::~MpiSession() { MPI_Finalize(); }

std::string MpiSession::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text);  // Open MPI counts the terminating zero into the length
  return version.substr(0, version.find_first_of("\r\n"));
}

void MpiSession::abort(int exit_code) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0 && !mpi_is_finalized()) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

Communicator Communicator::world() {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  return Communicator(std::make_unique<Handle>(comm));
}

Communicator::Communicator(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {
  MPI_Comm_rank(handle_->comm, &rank_);
  MPI_Comm_size(handle_->comm, &size_);
}

Communicator::~Communicator() = default;
Communicator::Communicator(Communicator&&) noexcept = default;
Communicator& Communicator::operator=(Communicator&&) noexcept = default;

std::optional<Communicator> Communicator::split(std::optional<int> color) const {
  check(!color || *color >= 0, "a colour is not negative");
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_split(handle_->comm, color.value_or(MPI_UNDEFINED), rank_, &comm);
  if (!color) return std::nullopt;
  return Communicator(std::make_unique<Handle>(comm));
}

Communicator Communicator::subgroup(std::span<const int> members, int tag) const {
  bool is_member = false;
  for (std::size_t i = 0; i < members.size(); ++i) {
    check(members[i] >= 0 && members[i] < size_ && (i == 0 || members[i - 1] < members[i]),
          "members of a subgroup are ranks in ascending order");
    is_member = is_member || members[i] == rank_;
  }
  check(is_member, "only the members of a subgroup make it");
  MPI_Group all = MPI_GROUP_NULL;
  MPI_Group some = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_group(handle_->comm, &all);
  MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &some);
  MPI_Comm_create_group(handle_->comm, some, tag, &comm);
  MPI_Group_free(&some);
  MPI_Group_free(&all);
  return Communicator(std::make_unique<Handle>(comm));
}

Communicator Communicator::node() const {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_split_type(handle_->comm, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &comm);
  return Communicator(std::make_unique<Handle>(comm));
}

void Communicator::use_hierarchy(std::optional<int> node) {
  check(!node || *node >= 0, "a node's number is not negative");
  handle_->drop_hierarchy();
  if (node) {
    MPI_Comm_split(handle_->comm, *node, rank_, &handle_->node);
  } else {
    MPI_Comm_split_type(handle_->comm, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &handle_->node);
  }
  int rank_in_node = 0;
  MPI_Comm_rank(handle_->node, &rank_in_node);
  const bool leads = rank_in_node == 0;
  int num_nodes = leads ? 1 : 0;
  MPI_Allreduce(MPI_IN_PLACE, &num_nodes, 1, MPI_INT, MPI_SUM, handle_->comm);
  if (num_nodes == 1 || num_nodes == size_) {
    handle_->drop_hierarchy();
    return;
  }
  MPI_Comm_split(handle_->comm, leads ? 0 : MPI_UNDEFINED, rank_, &handle_->leaders);
}

bool Communicator::is_hierarchical() const { return handle_->node != MPI_COMM_NULL; }

void Communicator::barrier() const { MPI_Barrier(handle_->comm); }

void Communicator::broadcast(std::span<std::byte> bytes, int root) const {
  for_each_piece(bytes, [&](std::byte* data, int count) { MPI_Bcast(data, count, MPI_BYTE, root, handle_->comm); });
}

std::string Communicator::broadcast(const std::string& text, int root) const {
  std::uint64_t size = text.size();
  MPI_Bcast(&size, 1, MPI_UINT64_T, root, handle_->comm);
  std::string result = rank_ == root ? text : std::string(size, '\0');
  broadcast(std::as_writable_bytes(std::span(result)), root);
  return result;
}

void Communicator::sum(std::span<std::int64_t> values) const { handle_->all_reduce(values, MPI_INT64_T, MPI_SUM); }
void Communicator::sum(std::span<double> values) const { handle_->all_reduce(values, MPI_DOUBLE, MPI_SUM); }
void Communicator::sum(std::span<float> values) const { handle_->all_reduce(values, MPI_FLOAT, MPI_SUM); }
void Communicator::max(std::span<double> values) const { handle_->all_reduce(values, MPI_DOUBLE, MPI_MAX); }
void Communicator::max(std::span<std::int64_t> values) const { handle_->all_reduce(values, MPI_INT64_T, MPI_MAX); }

std::vector<std::vector<std::byte>> Communicator::gather(std::span<const std::byte> bytes, int root) const {
  const std::uint64_t own_size = bytes.size();
  const bool is_root = rank_ == root;
  std::vector<std::uint64_t> sizes(is_root ? static_cast<std::size_t>(size_) : 0);
  MPI_Gather(&own_size, 1, MPI_UINT64_T, sizes.data(), 1, MPI_UINT64_T, root, handle_->comm);

  // Displacements of MPI_Gatherv are ints: messages have no such limit.
  if (!is_root) {
    for_each_piece(bytes, [&](const std::byte* data, int count) {
      MPI_Send(data, count, MPI_BYTE, root, gather_tag, handle_->comm);
    });
    return {};
  }
  std::vector<std::vector<std::byte>> parts(sizes.size());
  for (int rank = 0; rank < size_; ++rank) {
    std::vector<std::byte>& part = parts[static_cast<std::size_t>(rank)];
    if (rank == root) {
      part.assign(bytes.begin(), bytes.end());
      continue;
    }
    part.resize(sizes[static_cast<std::size_t>(rank)]);
    for_each_piece(std::span(part), [&](std::byte* data, int count) {
      MPI_Recv(data, count, MPI_BYTE, rank, gather_tag, handle_->comm, MPI_STATUS_IGNORE);
    });
  }
  return parts;
}

std::vector<std::vector<std::byte>> Communicator::all_gather(std::span<const std::byte> bytes) const {
  const std::vector<std::uint64_t> sizes = all_sizes(handle_->comm, size_, bytes.size());
  const std::uint64_t total = std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0});
  std::vector<std::vector<std::byte>> parts(sizes.size());
  if (total > max_message_bytes) {
    for (int rank = 0; rank < size_; ++rank) {
      std::vector<std::byte>& part = parts[static_cast<std::size_t>(rank)];
      if (rank == rank_) {
        part.assign(bytes.begin(), bytes.end());
      } else {
        part.resize(sizes[static_cast<std::size_t>(rank)]);
      }
      broadcast(part, rank);
    }
    return parts;
  }
  std::vector<int> counts(sizes.begin(), sizes.end());
  std::vector<int> offsets(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), 0);
  std::vector<std::byte> all(total);
  MPI_Allgatherv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, all.data(), counts.data(), offsets.data(),
                 MPI_BYTE, handle_->comm);
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    const auto begin = all.begin() + offsets[rank];
    parts[rank].assign(begin, begin + counts[rank]);
  }
  return parts;
}

}  // namespace fedpdpo
