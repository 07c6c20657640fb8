// A whole federation on a golden model, in a test: a few clients with random pairs, and a method that notes what passes
// through another one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "support/test_support.hpp"
#include "train/trainer_kit.hpp"

namespace fedpdpo::test {

/// Does what the method inside does, and keeps what its hooks are shown.
class Spy : public FederatedMethod {
 public:
  explicit Spy(std::unique_ptr<FederatedMethod> inner) : inner_(std::move(inner)) {}

  /// A client at a local step that trains something shared.
  struct Seen {
    std::vector<float> values, server;
    std::map<std::string, std::vector<float>> state, server_state;
  };
  using Key = std::pair<int, int>;          ///< client, round
  mutable std::map<Key, Seen> first, last;  ///< before the first step of a round, after its last one
  mutable std::vector<std::vector<float>> averages, residuals;  ///< of the server's rounds, in their order

  std::vector<Group> shared_groups() const override { return inner_->shared_groups(); }
  DataScope data_scope() const override { return inner_->data_scope(); }
  std::vector<Phase> plan_round(int round, std::vector<Phase> scheduled) const override {
    return inner_->plan_round(round, std::move(scheduled));
  }
  void adjust_gradient(const LocalStep& step) const override {
    first.try_emplace({step.client, step.round}, seen(step));
    inner_->adjust_gradient(step);
  }
  void adjust_step(const LocalStep& step) const override {
    inner_->adjust_step(step);
    last[{step.client, step.round}] = seen(step);
  }
  void finish_local(const LocalStep& step) const override { inner_->finish_local(step); }
  bool finishes_local() const override { return inner_->finishes_local(); }
  std::vector<std::string> payloads() const override { return inner_->payloads(); }
  std::size_t client_state_size(const ParameterLayout& layout) const override {
    return inner_->client_state_size(layout);
  }
  void update_server(ServerState& server, const ServerRound& round) const override {
    averages.emplace_back(round.average.begin(), round.average.end());
    inner_->update_server(server, round);
  }
  Traffic traffic(const TrafficRound& round) const override { return inner_->traffic(round); }
  bool moves_backbone() const override { return inner_->moves_backbone(); }
  void move_backbone(ServerState& server, const ServerRound& round,
                     std::span<const WeightedLora> clients) const override {
    inner_->move_backbone(server, round, clients);
    residuals.push_back(server.residual);
  }
  std::vector<Group> restarted_groups() const override { return inner_->restarted_groups(); }
  std::vector<Group> common_groups() const override { return inner_->common_groups(); }
  bool refits_everything() const override { return inner_->refits_everything(); }
  std::string refuses(Feature feature) const override { return inner_->refuses(feature); }

 private:
  static std::vector<float> host(ConstView view) {
    return view.data ? std::vector<float>(view.f32(), view.f32() + view.size()) : std::vector<float>();
  }
  static Seen seen(const LocalStep& step) {
    Seen result{host(step.values), host(step.server), {}, {}};
    for (const auto& [name, tensor] : step.state) result.state[name] = host(tensor.view());
    for (const auto& [name, tensor] : step.server_state) result.server_state[name] = host(tensor.view());
    return result;
  }

  std::unique_ptr<FederatedMethod> inner_;
};

/// Clients with `train` pairs each (by client) and two test pairs, all on this rank. Rank 4, three steps of four pairs.
struct FederationKit {
  FederationKit(const std::string& name, const std::vector<int>& train, int rounds = 2) : world(alone()) {
    std::uint32_t next = 0;
    for (int n : train) {
      ClientShare& client = partition.clients.emplace_back();
      client.name = "client" + std::to_string(partition.clients.size() - 1);
      for (int i = 0; i < n; ++i) client.pairs[0].push_back({0, next++});
      for (int i = 0; i < 2; ++i) client.pairs[2].push_back({0, next++});
    }
    pairs = random_pairs(next, 12);
    options.method = name;
    options.rounds = rounds;
    options.steps = 3;
    options.batch = 4;
    options.adapter.lora_rank = 4;
    options.adapter.lora_targets = "q_proj,down_proj";
    options.optimizer.lr_shared = options.optimizer.lr_private = 1e-2;
    options.eval_splits = "test";
    options.partition.num_clients = static_cast<int>(train.size());
    const MethodInfo* info = find_method(name);
    if (!info) throw std::runtime_error("no method " + name);
    info->defaults(options);
  }

  /// Runs the federation with what the options and the partition say by now.
  void run() {
    const MethodInfo& info = *find_method(options.method);
    spy = std::make_unique<Spy>(info.make(options));
    const ModelConfig& config = model.folder.config();
    ReferenceReport report;
    const ReferenceLogProbs reference = reference_log_probs(world, *model.backend, config, model.weights, pairs,
                                                            partition, {"model", "cpu-fp32", {}}, report);
    const Placement placement = place_clients(std::vector<double>(partition.clients.size(), 1), 1);
    options.out = folder / "run.h5";
    RunFile file(options.out);
    testing::internal::CaptureStderr();
    Federation federation(
        {world, *model.backend, config, model.weights, pairs, partition, placement, reference, options, *spy, "model"});
    layout.emplace(federation.layout());
    federation.run(&file);
    log = testing::internal::GetCapturedStderr();
    results.emplace(options.out);
  }

  std::vector<double> read(const std::string& path) const { return results->read<double>(path); }
  std::vector<float> part(const std::vector<float>& values, Group group) const {
    const ParameterRange range = layout->range(group);
    return {values.begin() + static_cast<std::ptrdiff_t>(range.begin),
            values.begin() + static_cast<std::ptrdiff_t>(range.end)};
  }
  /// What a client got from the server for a round, and what it made of it.
  const std::vector<float>& received(int client, int round) const { return spy->first.at({client, round}).server; }
  std::vector<float> result(int client, int round) const {
    std::vector<float> values = spy->last.at({client, round}).values;
    values.resize(layout->shared_size());
    return values;
  }

  static Communicator alone() {
    const Communicator world = Communicator::world();
    const int self[] = {world.rank()};
    return world.subgroup(self, 77);
  }

  Communicator world;
  GoldenModel model{"tiny_llama"};
  PairSet pairs;
  Partition partition;
  RunOptions options;
  std::unique_ptr<Spy> spy;
  std::optional<ParameterLayout> layout;
  TemporaryFolder folder;
  std::optional<Hdf5Reader> results;
  std::string log;
};

/// sum w_i v_i.
inline std::vector<float> weighted(const std::vector<std::pair<double, std::vector<float>>>& terms) {
  std::vector<double> sum(terms.front().second.size(), 0);
  for (const auto& [weight, values] : terms)
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * static_cast<double>(values[i]);
  return {sum.begin(), sum.end()};
}

/// Equal but for rounding to fp32 of numbers below 2.
inline void expect_all_near(const std::vector<float>& found, const std::vector<float>& expected, double bound = 3e-7) {
  ASSERT_EQ(found.size(), expected.size());
  double largest = 0;
  for (std::size_t i = 0; i < found.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(found[i]) - expected[i]));
  EXPECT_LE(largest, bound);
}

inline double norm_of_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double squared = 0;
  for (std::size_t i = 0; i < a.size(); ++i) squared += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(squared);
}

}  // namespace fedpdpo::test
