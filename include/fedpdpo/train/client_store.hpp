// Where the state of a rank's clients lies: values and both moments of as many as the device has slots for, of the
// others in page-locked host memory. A client is brought to a slot before it is used, while others are trained if it
// was announced, and what was changed goes back when its slot is given to another.
//
// With a slot for everybody nothing is ever moved, and no host memory is taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "fedpdpo/train/client_state.hpp"

namespace fedpdpo {

/// What is about to be done with a client on the device.
enum class Access : std::uint8_t {
  read_values,    ///< evaluation: the moments stay where they are
  change_values,  ///< likewise
  train,          ///< values and moments, both changed
};

/// The three rows of a client's state.
enum class StateRow : std::uint8_t { values, first_moment, second_moment };

class ClientStore {
 public:
  /// The clients (each number once) outlive the store. Their state is zeros, the first ones' on the device. At least
  /// one slot; more than clients are not made. OutOfDeviceMemory where the device has no room.
  ClientStore(Backend& backend, const ParameterLayout& layout, std::vector<ClientState*> clients, int num_slots);
  ~ClientStore();
  ClientStore(const ClientStore&) = delete;
  ClientStore& operator=(const ClientStore&) = delete;

  /// Rows of the clients that are on the device, at their ClientState::slot; -1: not there.
  ClientBuffers& buffers() { return buffers_; }
  int num_slots() const { return static_cast<int>(slots_.size()); }
  bool holds_everybody() const { return homes_.empty(); }

  /// Brings these clients (at most num_slots) to the device, where they stay until the next call. The work given from
  /// now on finds them; the host waits for nothing.
  void ensure(std::span<ClientState* const> clients, Access access);
  /// Begins to bring these, as many as there are slots for that the clients of the last ensure() leave: for the next
  /// ensure(). To be called before the work on those is given, so that it overlaps.
  void prefetch(std::span<ClientState* const> clients, Access access);

  /// The numbers from `begin` of a client's row to and from the host, wherever they lie. read() waits for them.
  void read(const ClientState& client, StateRow row, std::span<float> numbers, std::size_t begin = 0);
  void write(const ClientState& client, StateRow row, std::span<const float> numbers, std::size_t begin = 0);
  /// The client's values where they lie on the device; nothing where they do not.
  ConstView values_on_device(const ClientState& client);
  /// Copies numbers (1, n) in device memory over the first n of the client's values; false, and nothing done, where
  /// these are not on the device.
  bool write_on_device(const ClientState& client, ConstView numbers);
  /// Zeros in a range of both moments.
  void clear_moments(const ClientState& client, ParameterRange range);

 private:
  /// Values, or both moments: what is copied together.
  struct Piece {
    bool loaded = false;   // the device's numbers are the client's; else the host's are
    bool changed = false;  // the host's numbers are old
  };
  struct Slot {
    ClientState* client = nullptr;
    Piece values, moments;
    std::uint64_t used = 0;  // by turns of ensure() and prefetch()
    CopyTicket load;         // that the work does not wait for yet
  };
  /// A client's place in host memory, rows one after another.
  struct Home {
    std::shared_ptr<void> memory;
    CopyTicket copy;  // the last one from or to here
  };

  bool bring(ClientState& client, Access access, std::span<ClientState* const> wanted, bool spare_those_in_use);
  Slot* free_slot(std::span<ClientState* const> wanted, bool spare_those_in_use);
  void write_back(Slot& slot);
  void load(Slot& slot, StateRow row);
  Slot* on_device(const ClientState& client, StateRow row);
  View device_row(const ClientState& client, StateRow row) const;
  float* host_row(const Home& home, StateRow row) const;
  Home& home_at_rest(const ClientState& client);

  Backend& backend_;
  std::size_t size_;
  std::vector<ClientState*> clients_;
  ClientBuffers buffers_;
  std::vector<Slot> slots_;
  std::map<int, Home> homes_;  // by client number; empty: everybody has a slot
  std::uint64_t turn_ = 0;
  std::uint64_t last_ensured_ = 0;
};

}  // namespace fedpdpo
