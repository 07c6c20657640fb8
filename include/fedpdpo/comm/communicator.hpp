// MPI behind RAII: a group of ranks and the collective operations that the federation needs. mpi.h is included by
// the source files alone. An MPI error ends the job with its text (MPI_ERRORS_ARE_FATAL is kept).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace fedpdpo {

/// MPI_Init_thread (FUNNELED) on construction, MPI_Finalize on destruction; one per process, in main. Works as a
/// singleton, without mpirun.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// MPI library and version in one line.
  static std::string library_version();
  /// Ends every rank of the job now with this exit code (MPI_Abort).
  [[noreturn]] static void abort(int exit_code);
};

class Communicator {
 public:
  /// A duplicate of MPI_COMM_WORLD.
  static Communicator world();

  ~Communicator();
  Communicator(Communicator&&) noexcept;
  Communicator& operator=(Communicator&&) noexcept;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Collective. Ranks with the same colour form a communicator, ordered by rank; a rank that passes nullopt gets
  /// nullopt.
  std::optional<Communicator> split(std::optional<int> color) const;
  /// Collective over `members` alone (sorted ranks of this communicator, this one among them), so that a rank can
  /// be in several groups: MPI_Comm_create_group.
  Communicator subgroup(std::span<const int> members, int tag) const;
  /// Collective. The ranks that share this node's memory (MPI_COMM_TYPE_SHARED).
  Communicator node() const;

  /// Collective. From now on sum() and max() reduce inside every node onto its first rank, all-reduce among those, and
  /// broadcast inside the nodes. Ranks that pass the same number (not negative) are a node; all pass nullopt for the
  /// nodes as MPI sees them. With one node, or one rank a node, all stays flat. Subgroups begin flat.
  void use_hierarchy(std::optional<int> node);
  bool is_hierarchical() const;

  void barrier() const;
  void broadcast(std::span<std::byte> bytes, int root) const;
  std::string broadcast(const std::string& text, int root) const;
  void sum(std::span<std::int64_t> values) const;  ///< all-reduce, in place
  void sum(std::span<double> values) const;        ///< all-reduce, in place; order of summation is MPI's
  void sum(std::span<float> values) const;         ///< all-reduce, in place; order of summation is MPI's
  void max(std::span<double> values) const;        ///< all-reduce, in place
  void max(std::span<std::int64_t> values) const;  ///< all-reduce, in place
  /// Every rank's bytes on root, by rank; empty elsewhere. Handles more than 2 GiB in all.
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> bytes, int root) const;
  /// Every rank's bytes on every rank, by rank.
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> bytes) const;

 private:
  struct Handle;
  explicit Communicator(std::unique_ptr<Handle> handle);
  friend class NodeBuffer;
  std::unique_ptr<Handle> handle_;
  int rank_ = 0;
  int size_ = 1;
};

/// Memory that the ranks of a node share (an MPI-3 shared window): one copy of the frozen backbone per node. The
/// node's rank 0 fills it; fence() makes it visible to the others.
class NodeBuffer {
 public:
  /// Collective over `node`; zero bytes are allowed. 64-byte aligned.
  NodeBuffer(const Communicator& node, std::size_t num_bytes);
  ~NodeBuffer();
  NodeBuffer(NodeBuffer&&) noexcept;
  NodeBuffer& operator=(NodeBuffer&&) noexcept;

  std::span<std::byte> bytes() const { return bytes_; }
  /// Collective: writes made before it are seen after it.
  void fence() const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
  std::span<std::byte> bytes_;
};

}  // namespace fedpdpo
