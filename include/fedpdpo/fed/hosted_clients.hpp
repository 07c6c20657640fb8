// The clients that a rank hosts: their data with reference log-probabilities, their state, and moving that state to and
// from the device and checkpoints.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "fedpdpo/data/placement.hpp"
#include "fedpdpo/fed/reference.hpp"
#include "fedpdpo/fed/round_table.hpp"
#include "fedpdpo/record/checkpoint.hpp"
#include "fedpdpo/train/client_store.hpp"

namespace fedpdpo {

struct HostedClient {
  ClientState state;
  ClientData data;
  std::vector<double> row;  ///< metrics of the round under way
  int rank = 0;             ///< of its LoRA; 0: the layout's
  /// What it sent in the round under way.
  struct Update {
    std::size_t bytes = 0;         ///< of y_i; without compression fp32
    double compression_error = 0;  ///< share of the update's norm that compression left out
    double norm = 0;               ///< of the update, before clipping
  } update{};
};

class HostedClients {
 public:
  /// `clients`: numbers of the clients, ascending. Their state has no place yet.
  HostedClients(Backend& backend, const ParameterLayout& layout, const Partition& partition,
                const ReferenceLogProbs& reference, std::vector<int> clients, const RoundTable& table);

  /// Makes room for everybody's state, of at most `resident` clients at once on the device. OutOfDeviceMemory where it
  /// has not so much: then there is none.
  void make_room(int resident);
  /// Gives the room back.
  void release_room() { store_.reset(); }
  /// Everybody to the layout's initial values.
  void initialize(const HeadWeights& pretrained_head, std::uint64_t seed);

  std::vector<HostedClient>& all() { return clients_; }
  std::span<const int> numbers() const { return numbers_; }
  /// The hosted client of that number, or nullptr.
  HostedClient* find(int client);
  ClientBuffers& buffers() { return store_->buffers(); }
  /// True where the state of all is on the device, always.
  bool all_resident() const { return store_->holds_everybody(); }

  /// ClientStore::ensure and prefetch.
  void ensure(std::span<HostedClient* const> clients, Access access) { store_->ensure(states_of(clients), access); }
  void ensure(HostedClient& client, Access access);
  void prefetch(std::span<HostedClient* const> clients, Access access) { store_->prefetch(states_of(clients), access); }
  /// work(client) for each in turn, its state on the device and the next one's on its way there; ends where `work`
  /// returns false, and returns that.
  bool visit(std::span<HostedClient* const> clients, Access access, const std::function<bool(HostedClient&)>& work);
  /// The same for lists of clients whose state must be on the device together.
  using Cohort = std::vector<HostedClient*>;
  bool visit(std::span<const Cohort> cohorts, Access access,
             const std::function<bool(std::span<HostedClient* const>)>& work);

  /// Zeros in both of a client's moments.
  void clear_moments(const HostedClient& client, ParameterRange range) { store_->clear_moments(client.state, range); }

  /// Gives the client's LoRA a rank of its own, at most the layout's.
  void set_rank(HostedClient& client, int rank);

  /// Copies the shared span to and from the host; a client with a rank of its own takes so much of it.
  void get_shared(const HostedClient& client, std::span<float> values) const;
  void set_shared(const HostedClient& client, std::span<const float> values);
  /// The same where the backend's memory holds these values, too (1, shared_size): no copy from the host is needed.
  void set_shared(const HostedClient& client, std::span<const float> values, ConstView on_device);
  /// The shared span in the backend's memory (1, shared_size); without data where the client is not there.
  ConstView shared_on_device(const HostedClient& client) const;

  void save(CheckpointWriter& writer) const;
  void load(const CheckpointReader& reader);

 private:
  static std::vector<ClientState*> states_of(std::span<HostedClient* const> clients);

  Backend& backend_;
  const ParameterLayout& layout_;
  std::vector<int> numbers_;
  std::vector<HostedClient> clients_;
  std::unique_ptr<ClientStore> store_;
};

/// A client's pairs with the reference as the client sees it.
ClientData client_data(const Partition& partition, int client, const ReferenceLogProbs& reference);

}  // namespace fedpdpo
