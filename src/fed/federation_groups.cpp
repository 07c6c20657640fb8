// The round loop: who takes part, and whose results are averaged together.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/grouping.hpp"

namespace fedpdpo {
namespace {

void append(std::string& bytes, const std::string& name, std::span<const float> values) {
  const std::uint64_t head[] = {name.size(), values.size()};
  bytes.append(reinterpret_cast<const char*>(head), sizeof head);
  bytes += name;
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

std::string pack_state(const ServerState& state) {
  std::string bytes;
  append(bytes, "values", state.values);
  append(bytes, "residual", state.residual);
  for (const auto& [name, values] : state.state) append(bytes, "state." + name, values);
  return bytes;
}

/// Ascending, by group.
std::map<int, std::vector<int>> clients_of_groups(std::span<const int> assignment) {
  std::map<int, std::vector<int>> groups;
  for (std::size_t c = 0; c < assignment.size(); ++c)
    if (assignment[c] >= 0) groups[assignment[c]].push_back(static_cast<int>(c));
  return groups;
}

ServerState unpack_state(const std::string& bytes) {
  ServerState state;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t head[2];
    std::memcpy(head, bytes.data() + at, sizeof head);
    const std::string name = bytes.substr(at + sizeof head, head[0]);
    std::vector<float> values(head[1]);
    at += sizeof head + head[0];
    std::memcpy(values.data(), bytes.data() + at, values.size() * sizeof(float));
    at += values.size() * sizeof(float);
    if (name == "values") {
      state.values = std::move(values);
    } else if (name == "residual") {
      state.residual = std::move(values);
    } else {
      state.state[name.substr(6)] = std::move(values);
    }
  }
  return state;
}

}  // namespace

AggregationGroup* Federation::group_of(int client) {
  for (const auto& group : groups_)
    if (std::binary_search(group->clients().begin(), group->clients().end(), client)) return group.get();
  return nullptr;
}

double Federation::sampling_rate() const {
  const double wanted = in_.options.participation;
  if (wanted <= 1) return wanted;
  const auto trained = std::count_if(assignment_.begin(), assignment_.end(), [](int group) { return group >= 0; });
  return std::min(1.0, wanted / static_cast<double>(trained));
}

/// The clients that take part in a round, ascending; the same on every rank.
std::vector<int> Federation::participants(int round) const {
  const RunOptions& o = in_.options;
  // Clusters are found from everybody's first update.
  const bool all = o.groups == GroupKind::clusters && o.cluster_labels.empty() && round == 1;
  std::vector<int> drawn;
  for (const auto& [group, clients] : clients_of_groups(assignment_)) {
    std::vector<int> chosen = clients;
    if (in_.method.data_scope() == DataScope::pooled) {
      chosen = {clients.front()};
    } else if (o.privacy.clip > 0) {
      chosen = draw_poisson(clients, sampling_rate(), o.seed(), round);
    } else if (!all) {
      chosen = draw_participants(clients, o.participation, o.seed(), round, group);
    }
    drawn.insert(drawn.end(), chosen.begin(), chosen.end());
  }
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

bool Federation::participates(int client) const { return std::binary_search(present_.begin(), present_.end(), client); }

/// Collective. Groups of the clients with equal numbers; their servers hold nothing yet.
void Federation::form_groups(std::vector<int> assignment) {
  assignment_ = std::move(assignment);
  groups_.clear();
  server_on_device_.clear();
  server_state_on_device_.clear();
  backbones_.clear();
  const auto make = [&](int index, std::vector<int> clients, std::vector<std::size_t> blocks) {
    std::set<int> ranks;
    for (int client : clients) ranks.insert(in_.placement.rank_of_client[static_cast<std::size_t>(client)]);
    std::unique_ptr<AggregationGroup> group;
    if (!ranks.contains(in_.world.rank())) return group;
    const std::vector<int> members(ranks.begin(), ranks.end());
    return std::make_unique<AggregationGroup>(
        in_.world, index, members, std::move(clients), std::move(blocks),
        ReductionPlan{in_.options.reduce, in_.options.reduce_route, in_.options.ranks_per_node});
  };
  std::vector<int> everybody;
  const auto clients_of_group = clients_of_groups(assignment_);
  for (const auto& [index, clients] : clients_of_group) {
    everybody.insert(everybody.end(), clients.begin(), clients.end());
    if (auto group = make(index, clients, layout_.shared_blocks())) groups_.push_back(std::move(group));
  }
  everyone_.reset();
  if (!in_.method.common_groups().empty() && clients_of_group.size() > 1) {
    std::size_t common = 0;
    for (Group group : in_.method.common_groups()) common = std::max(common, layout_.range(group).end);
    std::vector<std::size_t> blocks = layout_.shared_blocks();
    std::erase_if(blocks, [&](std::size_t offset) { return offset > common; });
    std::sort(everybody.begin(), everybody.end());
    everyone_ = make(static_cast<int>(clients_of_group.size()), std::move(everybody), std::move(blocks));
  }
  choose_routes();
}

/// Every group's server state on every rank; collective.
std::vector<ServerState> Federation::server_states() {
  std::vector<ServerState> states;
  for (const auto& [g, clients] : clients_of_groups(assignment_)) {
    const int root = in_.placement.rank_of_client[static_cast<std::size_t>(clients.front())];
    std::string bytes;
    for (const auto& group : groups_)
      if (in_.world.rank() == root && group->index() == g) bytes = pack_state(group->server);
    states.push_back(unpack_state(in_.world.broadcast(bytes, root)));
  }
  return states;
}

/// Collective. A new group goes on from the state of the group that its first client was in.
void Federation::regroup(std::vector<int> assignment) {
  if (assignment == assignment_) return;
  const std::vector<int> before = assignment_;
  const std::vector<ServerState> states = server_states();
  form_groups(std::move(assignment));
  for (const auto& group : groups_) {
    group->server = states[static_cast<std::size_t>(before[static_cast<std::size_t>(group->clients().front())])];
    upload_server(*group);
  }
  std::string text;
  for (const auto& [group, clients] : clients_of_groups(assignment_))
    text += fmt::format(" [{}]", fmt::join(clients, " "));
  log_info(fmt::format("round {}: aggregation groups{}", round_, text));
}

/// Whether this round's results are grouped anew.
bool Federation::finds_groups() const {
  const RunOptions& o = in_.options;
  const bool first = o.groups == GroupKind::clusters && o.cluster_labels.empty() && round_ == 1;
  return first || o.groups == GroupKind::agreement;
}

/// The groups that this round's results ask for; nullopt where groups are fixed.
std::optional<std::vector<int>> Federation::wanted_groups(std::span<const Result> results) {
  if (!finds_groups()) return std::nullopt;
  return cluster_updates(results);
}

/// Adds the results' updates up by client and groups the clients by the direction of these sums; collective.
std::vector<int> Federation::cluster_updates(std::span<const Result> results) {
  // B turns with a client's preferences while A, whose gradient has B as a factor, does not.
  const bool has_b = layout_.is_shared(Group::lora_b) && layout_.has(Group::lora_b);
  const ParameterRange range = has_b ? layout_.range(Group::lora_b) : ParameterRange{0, layout_.shared_size()};
  const auto size = static_cast<std::int64_t>(range.size());
  for (const Result& result : results) {
    ClientState& state = result.client->state;
    if (!state.sums.finite) continue;
    const std::vector<float>& x = group_of(state.client)->server.values;
    const View sum = local_step(state, View{}, View{}).client_array("grouping.direction", size);
    std::vector<float> direction(range.size());
    in_.backend.copy_to_host(direction.data(), sum.data, direction.size() * sizeof(float));
    for (std::size_t i = 0; i < direction.size(); ++i)
      direction[i] += result.values[range.begin + i] - x[range.begin + i];
    in_.backend.copy_to_device(sum.data, direction.data(), direction.size() * sizeof(float));
  }
  std::vector<ClientDirection> own;
  for (HostedClient& client : clients_.all()) {
    const auto found = client.state.method_state.find("grouping.direction");
    if (found == client.state.method_state.end()) continue;
    own.push_back({client.state.client, std::vector<float>(range.size())});
    in_.backend.copy_to_host(own.back().values.data(), found->second.view().data, range.size() * sizeof(float));
  }
  std::vector<double> products = direction_products(in_.world, static_cast<int>(assignment_.size()), own, range.size());
  GroupingRule rule;
  if (in_.options.groups == GroupKind::clusters) rule.num_groups = in_.options.num_clusters;
  rule.errors = in_.options.agreement_errors;
  // Only rank 0 has the products; the others take its word.
  std::vector<std::int32_t> assignment(assignment_.size(), -1);
  if (in_.world.rank() == 0) {
    std::vector<int> members;
    for (std::size_t c = 0; c < assignment_.size(); ++c)
      if (assignment_[c] >= 0) members.push_back(static_cast<int>(c));
    const std::vector<int> groups = group_directions(products, static_cast<int>(assignment_.size()), members, rule);
    std::copy(groups.begin(), groups.end(), assignment.begin());
  }
  in_.world.broadcast(std::as_writable_bytes(std::span(assignment)), 0);
  return {assignment.begin(), assignment.end()};
}

}  // namespace fedpdpo
