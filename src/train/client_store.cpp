// Residency of clients' state.
#include "fedpdpo/train/client_store.hpp"

#include <algorithm>
#include <cstring>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

bool contains(std::span<ClientState* const> list, const ClientState* client) {
  return std::find(list.begin(), list.end(), client) != list.end();
}

}  // namespace

ClientStore::ClientStore(Backend& backend, const ParameterLayout& layout, std::vector<ClientState*> clients,
                         int num_slots)
    : backend_(backend),
      size_(layout.size()),
      clients_(std::move(clients)),
      buffers_(backend, layout, std::min(num_slots, static_cast<int>(clients_.size()))),
      slots_(std::min(static_cast<std::size_t>(num_slots), clients_.size())) {
  check(num_slots > 0 || clients_.empty(), "a store without slots");
  const bool swaps = slots_.size() < clients_.size();
  for (std::size_t i = 0; i < clients_.size(); ++i) {
    ClientState& client = *clients_[i];
    client.slot = i < slots_.size() ? static_cast<std::int32_t>(i) : -1;
    if (client.slot >= 0) slots_[i] = {&client, {.loaded = true}, {.loaded = true}, 0, {}};
    if (swaps) homes_[client.client].memory = backend.allocate_pinned(3 * size_ * sizeof(float));
  }
  check(homes_.empty() || homes_.size() == clients_.size(), "two clients of one number");
}

ClientStore::~ClientStore() {
  try {
    for (const auto& [client, home] : homes_) backend_.finish(home.copy);
  } catch (const std::exception&) {  // the device is lost: nothing is under way
  }
}

void ClientStore::ensure(std::span<ClientState* const> clients, Access access) {
  check(clients.size() <= slots_.size(), "ensure: more clients than slots");
  if (holds_everybody()) return;
  last_ensured_ = ++turn_;
  for (ClientState* client : clients) check(bring(*client, access, clients, false), "ensure: no slot");
  for (ClientState* client : clients) {
    Slot& slot = slots_[static_cast<std::size_t>(client->slot)];
    backend_.wait_for(slot.load);
    slot.load = {};
    slot.used = turn_;
    slot.values.changed |= access != Access::read_values;
    slot.moments.changed |= access == Access::train;
  }
}

void ClientStore::prefetch(std::span<ClientState* const> clients, Access access) {
  if (holds_everybody()) return;
  ++turn_;
  for (ClientState* client : clients)
    if (!bring(*client, access, clients, true)) return;
}

/// False where no slot is left.
bool ClientStore::bring(ClientState& client, Access access, std::span<ClientState* const> wanted,
                        bool spare_those_in_use) {
  if (client.slot < 0) {
    Slot* slot = free_slot(wanted, spare_those_in_use);
    if (!slot) return false;
    write_back(*slot);
    if (slot->client) slot->client->slot = -1;
    *slot = {&client, {}, {}, turn_, {}};
    client.slot = static_cast<std::int32_t>(slot - slots_.data());
  }
  Slot& slot = slots_[static_cast<std::size_t>(client.slot)];
  if (!slot.values.loaded) load(slot, StateRow::values);
  slot.values.loaded = true;
  if (access == Access::train && !slot.moments.loaded) {
    load(slot, StateRow::first_moment);
    load(slot, StateRow::second_moment);
    slot.moments.loaded = true;
  }
  return true;
}

/// An empty one, else the one that was used last: clients come in the same order again and again, so that it is the one
/// not needed for longest. (With the one used first, each would be gone just before its turn.)
ClientStore::Slot* ClientStore::free_slot(std::span<ClientState* const> wanted, bool spare_those_in_use) {
  Slot* best = nullptr;
  for (Slot& slot : slots_) {
    if (!slot.client) return &slot;
    const bool in_use = spare_those_in_use && slot.used == last_ensured_;
    if (in_use || contains(wanted, slot.client)) continue;
    if (!best || slot.used > best->used) best = &slot;
  }
  return best;
}

void ClientStore::write_back(Slot& slot) {
  if (!slot.client) return;
  Home& home = homes_.at(slot.client->client);
  const auto save = [&](StateRow row) {
    home.copy =
        backend_.copy_to_host_async(host_row(home, row), device_row(*slot.client, row).data, size_ * sizeof(float));
  };
  if (slot.values.changed) save(StateRow::values);
  if (slot.moments.changed) {
    save(StateRow::first_moment);
    save(StateRow::second_moment);
  }
}

void ClientStore::load(Slot& slot, StateRow row) {
  Home& home = homes_.at(slot.client->client);
  home.copy =
      backend_.copy_to_device_async(device_row(*slot.client, row).data, host_row(home, row), size_ * sizeof(float));
  slot.load = home.copy;
}

/// The client's slot where this row lies there.
ClientStore::Slot* ClientStore::on_device(const ClientState& client, StateRow row) {
  if (client.slot < 0) return nullptr;
  Slot& slot = slots_[static_cast<std::size_t>(client.slot)];
  check(slot.client == &client, "a client of another store");
  const Piece& piece = row == StateRow::values ? slot.values : slot.moments;
  if (!piece.loaded) return nullptr;
  backend_.wait_for(slot.load);
  slot.load = {};
  return &slot;
}

View ClientStore::device_row(const ClientState& client, StateRow row) const {
  switch (row) {
    case StateRow::values:
      return buffers_.values(client);
    case StateRow::first_moment:
      return buffers_.first_moment(client);
    case StateRow::second_moment:
      return buffers_.second_moment(client);
  }
  return {};
}

float* ClientStore::host_row(const Home& home, StateRow row) const {
  return static_cast<float*>(home.memory.get()) + static_cast<std::size_t>(row) * size_;
}

/// The client's host memory, when no copy touches it any more.
ClientStore::Home& ClientStore::home_at_rest(const ClientState& client) {
  Home& home = homes_.at(client.client);
  backend_.finish(home.copy);
  home.copy = {};
  return home;
}

void ClientStore::read(const ClientState& client, StateRow row, std::span<float> numbers, std::size_t begin) {
  check(begin + numbers.size() <= size_, "read: beyond the row");
  if (on_device(client, row)) {
    backend_.copy_to_host(numbers.data(), device_row(client, row).f32() + begin, numbers.size_bytes());
  } else if (!numbers.empty()) {
    std::memcpy(numbers.data(), host_row(home_at_rest(client), row) + begin, numbers.size_bytes());
  }
}

void ClientStore::write(const ClientState& client, StateRow row, std::span<const float> numbers, std::size_t begin) {
  check(begin + numbers.size() <= size_, "write: beyond the row");
  if (Slot* slot = on_device(client, row)) {
    backend_.copy_to_device(device_row(client, row).f32() + begin, numbers.data(), numbers.size_bytes());
    (row == StateRow::values ? slot->values : slot->moments).changed = true;
  } else if (!numbers.empty()) {
    std::memcpy(host_row(home_at_rest(client), row) + begin, numbers.data(), numbers.size_bytes());
  }
}

ConstView ClientStore::values_on_device(const ClientState& client) {
  return on_device(client, StateRow::values) ? ConstView(buffers_.values(client)) : ConstView{};
}

bool ClientStore::write_on_device(const ClientState& client, ConstView numbers) {
  Slot* slot = on_device(client, StateRow::values);
  if (!slot) return false;
  backend_.copy(numbers, buffers_.values(client).columns(0, numbers.cols));
  slot->values.changed = true;
  return true;
}

void ClientStore::clear_moments(const ClientState& client, ParameterRange range) {
  check(range.end <= size_, "clear_moments: beyond the row");
  for (const StateRow row : {StateRow::first_moment, StateRow::second_moment}) {
    if (Slot* slot = on_device(client, row)) {
      backend_.fill(
          device_row(client, row).columns(static_cast<std::int64_t>(range.begin), static_cast<std::int64_t>(range.end)),
          0.0f);
      slot->moments.changed = true;
    } else {
      float* const at = host_row(home_at_rest(client), row);
      std::fill(at + range.begin, at + range.end, 0.0f);
    }
  }
}

}  // namespace fedpdpo
