// Hosting clients.
#include "fedpdpo/fed/hosted_clients.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint_names.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

ClientData client_data(const Partition& partition, int client, const ReferenceLogProbs& reference) {
  const ClientShare& share = partition.clients[static_cast<std::size_t>(client)];
  ClientData data;
  data.client = client;
  for (std::size_t s = 0; s < share.pairs.size(); ++s) {
    for (PairId id : share.pairs[s]) {
      double chosen = reference.chosen[id.file][id.index], rejected = reference.rejected[id.file][id.index];
      if (share.flipped) std::swap(chosen, rejected);
      data.pairs[s].push_back({{id, share.flipped}, chosen, rejected});
    }
  }
  return data;
}

HostedClients::HostedClients(Backend& backend, const ParameterLayout& layout, const Partition& partition,
                             const ReferenceLogProbs& reference, std::vector<int> clients, const RoundTable& table)
    : backend_(backend), layout_(layout), numbers_(std::move(clients)) {
  clients_.reserve(numbers_.size());
  for (int client : numbers_) {
    HostedClient& hosted = clients_.emplace_back();
    hosted.state.client = client;
    hosted.state.slot = -1;
    hosted.data = client_data(partition, client, reference);
    hosted.row = table.empty_row();
  }
}

std::vector<ClientState*> HostedClients::states_of(std::span<HostedClient* const> clients) {
  std::vector<ClientState*> states;
  for (HostedClient* client : clients) states.push_back(&client->state);
  return states;
}

void HostedClients::make_room(int resident) {
  std::vector<ClientState*> states;
  for (HostedClient& client : clients_) states.push_back(&client.state);
  store_ = std::make_unique<ClientStore>(backend_, layout_, std::move(states), resident);
}

void HostedClients::initialize(const HeadWeights& pretrained_head, std::uint64_t seed) {
  std::vector<float> values(layout_.size());
  if (values.empty()) return;
  for (HostedClient& client : clients_) {
    layout_.initialize(seed, client.state.client, pretrained_head, values);
    store_->write(client.state, StateRow::values, values);
  }
}

void HostedClients::ensure(HostedClient& client, Access access) {
  ClientState* const state = &client.state;
  store_->ensure(std::span(&state, 1), access);
}

bool HostedClients::visit(std::span<HostedClient* const> clients, Access access,
                          const std::function<bool(HostedClient&)>& work) {
  std::vector<Cohort> alone;
  for (HostedClient* client : clients) alone.push_back({client});
  return visit(alone, access, [&](std::span<HostedClient* const> cohort) { return work(*cohort.front()); });
}

bool HostedClients::visit(std::span<const Cohort> cohorts, Access access,
                          const std::function<bool(std::span<HostedClient* const>)>& work) {
  for (std::size_t i = 0; i < cohorts.size(); ++i) {
    ensure(cohorts[i], access);
    if (i + 1 < cohorts.size()) prefetch(cohorts[i + 1], access);
    if (!work(cohorts[i])) return false;
  }
  return true;
}

void HostedClients::set_rank(HostedClient& client, int rank) {
  const int whole = layout_.options().lora_rank;
  check(rank > 0 && rank <= whole, "a client's rank is at most the layout's");
  client.rank = rank;
  client.state.lora_weight = static_cast<float>(whole) / static_cast<float>(rank);
}

HostedClient* HostedClients::find(int client) {
  auto found = std::lower_bound(numbers_.begin(), numbers_.end(), client);
  if (found == numbers_.end() || *found != client) return nullptr;
  return &clients_[static_cast<std::size_t>(found - numbers_.begin())];
}

void HostedClients::get_shared(const HostedClient& client, std::span<float> values) const {
  check(values.size() == layout_.shared_size(), "get_shared: another size");
  store_->read(client.state, StateRow::values, values);
}

void HostedClients::set_shared(const HostedClient& client, std::span<const float> values) {
  check(values.size() == layout_.shared_size(), "set_shared: another size");
  if (client.rank > 0) {
    std::vector<float> own(values.begin(), values.end());
    layout_.truncate_rank(client.rank, own);
    store_->write(client.state, StateRow::values, own);
    return;
  }
  store_->write(client.state, StateRow::values, values);
}

void HostedClients::set_shared(const HostedClient& client, std::span<const float> values, ConstView on_device) {
  if (client.rank > 0 || !on_device.data || !store_->write_on_device(client.state, on_device))
    set_shared(client, values);
}

ConstView HostedClients::shared_on_device(const HostedClient& client) const {
  const auto size = static_cast<std::int64_t>(layout_.shared_size());
  const ConstView values = store_->values_on_device(client.state);
  return values.data && size > 0 ? values.columns(0, size) : ConstView{};
}

void HostedClients::save(CheckpointWriter& writer) const {
  const std::size_t size = layout_.size();
  std::vector<float> values(size), first(size), second(size);
  for (const HostedClient& client : clients_) {
    StateFile file;
    store_->read(client.state, StateRow::values, values);
    store_->read(client.state, StateRow::first_moment, first);
    store_->read(client.state, StateRow::second_moment, second);
    file.put("values", std::span<const float>(values));
    file.put("first_moment", std::span<const float>(first));
    file.put("second_moment", std::span<const float>(second));
    std::vector<std::int64_t> counters(client.state.adam_steps.begin(), client.state.adam_steps.end());
    counters.insert(counters.end(), {client.state.pairs_drawn, client.state.steps_done, client.state.refit_done});
    file.put("counters", std::span<const std::int64_t>(counters));
    const auto sums = client.state.sums.pack();
    file.put("sums", std::span<const double>(sums));
    file.put("row", std::span<const double>(client.row));
    const double update[] = {static_cast<double>(client.update.bytes), client.update.compression_error,
                             client.update.norm};
    file.put("update", std::span<const double>(update));
    std::vector<std::vector<float>> extra;
    extra.reserve(client.state.method_state.size());
    for (const auto& [name, tensor] : client.state.method_state) {
      std::vector<float>& host = extra.emplace_back(static_cast<std::size_t>(tensor.view().size()));
      backend_.copy_to_host(host.data(), tensor.view().data, host.size() * sizeof(float));
      file.put("method." + name, std::span<const float>(host));
    }
    writer.add(client_file(client.state.client), file);
  }
}

void HostedClients::load(const CheckpointReader& reader) {
  for (HostedClient& client : clients_) {
    const SafetensorsFile file = reader.open(client_file(client.state.client));
    const std::int64_t shape[] = {static_cast<std::int64_t>(layout_.size())};
    store_->write(client.state, StateRow::values, file.read<float>("values", shape));
    store_->write(client.state, StateRow::first_moment, file.read<float>("first_moment", shape));
    store_->write(client.state, StateRow::second_moment, file.read<float>("second_moment", shape));
    const std::int64_t num_counters[] = {num_groups + 3};
    const auto counters = file.read<std::int64_t>("counters", num_counters);
    std::copy_n(counters.begin(), num_groups, client.state.adam_steps.begin());
    client.state.pairs_drawn = counters[num_groups];
    client.state.steps_done = static_cast<int>(counters[num_groups + 1]);
    client.state.refit_done = static_cast<int>(counters[num_groups + 2]);
    const std::int64_t num_sums[] = {static_cast<std::int64_t>(RoundSums::num_fields)};
    client.state.sums = RoundSums::unpack(file.read<double>("sums", num_sums));
    const std::int64_t num_columns[] = {static_cast<std::int64_t>(client.row.size())};
    const auto row = file.read<double>("row", num_columns);
    client.row.assign(row.begin(), row.end());
    const std::int64_t num_update[] = {3};
    const auto update = file.read<double>("update", num_update);
    client.update = {static_cast<std::size_t>(update[0]), update[1], update[2]};
    for (const auto& [name, tensor] : file.tensors()) {
      if (name.rfind("method.", 0) != 0) continue;
      const auto values = file.read<float>(name);
      Tensor state(backend_, 1, static_cast<std::int64_t>(values.size()));
      backend_.copy_to_device(state.view().data, values.data(), values.size_bytes());
      client.state.method_state.insert_or_assign(name.substr(7), state);
    }
  }
}

}  // namespace fedpdpo
