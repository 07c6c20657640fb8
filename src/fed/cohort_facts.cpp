// What a run's cohorts are chosen from.
#include <algorithm>
#include <cmath>
#include <string>

#include "fedpdpo/data/packing.hpp"
#include "fedpdpo/fed/cohort.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "fedpdpo/fed/personalization.hpp"

namespace fedpdpo {
namespace {

/// Packed rows of a typical train pair (the median of some of every client), and of the longest pair of any split.
struct PairRows {
  double typical = 0;
  std::int64_t longest = 0;
};

PairRows pair_rows(const PairSet& pairs, const Partition& partition, const PackingOptions& packing) {
  constexpr std::size_t sample = 64;  // of a client: its pairs lie in shuffled order
  PairRows rows;
  std::vector<std::int32_t> sampled;
  for (const ClientShare& client : partition.clients)
    for (std::size_t split = 0; split < client.pairs.size(); ++split)
      for (std::size_t i = 0; i < client.pairs[split].size(); ++i) {
        const PairId id = client.pairs[split][i];
        const std::int32_t count = packed_rows(pairs.files[id.file], id.index, packing);
        rows.longest = std::max<std::int64_t>(rows.longest, count);
        if (split == 0 && i < sample) sampled.push_back(count);
      }
  if (sampled.empty()) return rows;
  const auto middle = sampled.begin() + static_cast<std::ptrdiff_t>(sampled.size() / 2);
  std::nth_element(sampled.begin(), middle, sampled.end());
  rows.typical = *middle;
  return rows;
}

/// Clients that train in a round, in all; under differential privacy each one may or may not.
int trained_in_a_round(const RunOptions& options, int candidates) {
  const bool in_groups = options.groups != GroupKind::all;
  if (options.privacy.clip > 0 || (in_groups && options.participation > 1)) return candidates;
  if (options.participation > 1) return std::min(candidates, static_cast<int>(options.participation));
  return std::clamp(static_cast<int>(std::ceil(options.participation * candidates)), 1, candidates);
}

}  // namespace

CohortFacts cohort_facts(const CohortInput& in, std::span<const int> clients, int ranks_on_device) {
  const RunOptions& o = in.options;
  const auto is_trained = [](const ClientShare& client) { return !client.is_new; };
  const auto candidates =
      static_cast<int>(std::count_if(in.partition.clients.begin(), in.partition.clients.end(), is_trained));
  const auto own = static_cast<int>(std::count_if(clients.begin(), clients.end(), [&](int client) {
    return is_trained(in.partition.clients[static_cast<std::size_t>(client)]);
  }));
  const bool pooled = in.method.data_scope() == DataScope::pooled;
  const PairRows rows = pair_rows(in.pairs, in.partition, in.policy.packing());

  CohortFacts facts;
  facts.num_clients = static_cast<int>(clients.size());
  facts.num_trained = pooled ? std::min(1, own) : std::min(own, trained_in_a_round(o, candidates));
  facts.step_rows = o.batch * rows.typical;
  facts.longest_pair = rows.longest;
  if (const auto memory = in.backend.memory())
    facts.free_bytes = memory->free / static_cast<std::size_t>(ranks_on_device);

  const std::size_t number = sizeof(float);
  facts.gradient_bytes = in.layout.size() * number;
  facts.state_bytes = 3 * facts.gradient_bytes;
  // The arrays that the method and its companions keep of a client stay on the device, whether the client does or not.
  std::size_t arrays = in.method.client_state_size(in.layout);
  if (const auto personalization = make_personalization({o.adapter.personal_lora}))
    arrays += personalization->client_state_size(in.layout);
  if (o.compression.kind != Compression::none) arrays += in.layout.shared_size();
  if (o.groups == GroupKind::agreement || (o.groups == GroupKind::clusters && o.cluster_labels.empty()))
    arrays += in.layout.has(Group::lora_b) && in.layout.is_shared(Group::lora_b) ? in.layout.range(Group::lora_b).size()
                                                                                 : in.layout.shared_size();
  // Of every group that may have a client here: the server's values, and its backbone where the method moves it.
  const int aggregation_groups = o.groups == GroupKind::all        ? 1
                                 : o.groups == GroupKind::domain   ? static_cast<int>(in.pairs.files.size())
                                 : o.groups == GroupKind::clusters ? o.num_clusters
                                                                   : candidates;
  std::size_t server = in.layout.shared_size() * number;
  if (in.method.moves_backbone()) server += weight_bytes(in.config, DType::f32);
  facts.other_bytes = arrays * number * clients.size() +
                      server * static_cast<std::size_t>(std::min(aggregation_groups, facts.num_clients));
  facts.pass_bytes = [&policy = in.policy](std::int64_t n) { return policy.buffer_bytes(n, Pass::train); };
  return facts;
}

int ranks_on_device(const Communicator& world, const Backend& backend) {
  const std::string own = backend.device_identity();
  const auto identities = world.node().all_gather(std::as_bytes(std::span(own)));
  if (own.empty()) return 1;
  return static_cast<int>(std::count_if(identities.begin(), identities.end(), [&](const auto& bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) == own;
  }));
}

}  // namespace fedpdpo
