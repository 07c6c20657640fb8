// The round loop: evaluation, in the rounds and at the end.
#include <algorithm>
#include <limits>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/evaluation_schedule.hpp"
#include "fedpdpo/fed/federation.hpp"
#include "fedpdpo/fed/stop_signal.hpp"
#include "keyed_rows.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {
namespace {

/// Evaluations have no steps by which clients could be apart.
int never(const HostedClient&) { return 0; }

}  // namespace

/// The weights that a client's passes run on: its group's, where the method moves them.
void Federation::use_backbone_of(int client) {
  if (!in_.method.moves_backbone()) return;
  const AggregationGroup* group = group_of(client);
  const auto found = group ? backbones_.find(group->index()) : backbones_.end();
  policy_.use_backbone(found == backbones_.end() ? in_.weights : found->second.weights());
}

/// How much a client's personal LoRA counts for each of these pairs; empty where it is not asked.
std::vector<float> Federation::weigh_instances(const HostedClient& client, std::span<const ClientPair> pairs) {
  if (!personalization_ || !personalization_->weighs_instances()) return {};
  policy_.use_backbone(in_.weights);
  const auto embed = [&](std::span<const ClientPair> list) {
    return embed_pairs(in_.pairs, policy_, clients_.buffers().parameters(), client.state.slot, list,
                       cohort_.micro_rows);
  };
  // A client's pairs lie in shuffled order: the first ones are a sample.
  const std::span<const ClientPair> train = client.data.of(Split::train);
  const auto samples = std::min(train.size(), static_cast<std::size_t>(in_.options.personal_samples));
  return instance_weights(embed(pairs), embed(train.first(samples)), static_cast<std::size_t>(in_.config.hidden_size));
}

/// The same for a client's own pairs of a split.
const std::vector<float>& Federation::own_instance_weights(const HostedClient& client, Split split) {
  // The bare backbone and the pairs never change, so neither do the weights.
  const auto [found, is_new] = instance_weights_.try_emplace({client.state.client, split});
  if (is_new) found->second = weigh_instances(client, client.data.of(split));
  return found->second;
}

/// Clients' present models, each on its own pairs; nullopt where `stop` became true.
std::optional<std::vector<Evaluation>> Federation::evaluate_cohort(std::span<HostedClient* const> cohort, Split split,
                                                                   const std::function<bool()>& stop) {
  std::vector<EvaluatedModel> models;
  for (const HostedClient* client : cohort)
    models.push_back(
        {client->state.slot, client->data.of(split), client->state.lora_weight, own_instance_weights(*client, split)});
  use_backbone_of(cohort.front()->state.client);
  return evaluate(in_.pairs, policy_, clients_.buffers().parameters(present_adapter()), models, loss_,
                  cohort_.micro_rows, stop);
}

/// A client's model with that LoRA, on pairs whose instance weights are given, on the backbone in use.
Evaluation Federation::evaluate_on(const HostedClient& client, std::span<const ClientPair> pairs,
                                   std::span<const float> weights, Adapter adapter) {
  const EvaluatedModel model{client.state.slot, pairs, client.state.lora_weight, weights};
  return evaluate(in_.pairs, policy_, clients_.buffers().parameters(adapter), std::span(&model, 1), loss_,
                  cohort_.micro_rows, nullptr)
      ->front();
}

bool Federation::evaluate_all(Point point) {
  if (!is_evaluated(round_)) return true;
  PhaseTimer timer(seconds_["evaluate"]);
  const bool same = round_ == 0 || is_evaluated_once(in_.options, in_.method, layout_.shared_size());
  if (same && point == Point::before) return true;
  const auto evaluate_own = [&](std::span<HostedClient* const> cohort) {
    for (Split split : splits_) {
      const auto evaluations = evaluate_cohort(cohort, split, stop_requested);
      if (!evaluations) return false;
      for (std::size_t i = 0; i < cohort.size(); ++i) {
        table_.set_evaluation(cohort[i]->row, split, point, (*evaluations)[i]);
        if (split == Split::test && point == Point::after) last_test_[cohort[i]->state.client] = (*evaluations)[i];
      }
    }
    if (same)
      for (HostedClient* client : cohort) table_.copy_evaluation(client->row, Point::after, Point::before);
    return true;
  };
  return clients_.visit(cohorts(clients_in_groups(), never), Access::read_values, evaluate_own);
}

FinalMargins Federation::gather_margins() {
  FinalMargins margins;
  if (std::find(splits_.begin(), splits_.end(), Split::test) == splits_.end()) return margins;
  // After a resume at the very end nothing was evaluated in this process.
  const std::vector<HostedClient*> all = clients_in_groups();
  std::vector<HostedClient*> missing = all;
  std::erase_if(missing, [&](const HostedClient* client) { return last_test_.contains(client->state.client); });
  clients_.visit(cohorts(missing, never), Access::read_values, [&](std::span<HostedClient* const> cohort) {
    const std::vector<Evaluation> evaluations = *evaluate_cohort(cohort, Split::test, nullptr);
    for (std::size_t i = 0; i < cohort.size(); ++i) last_test_[cohort[i]->state.client] = evaluations[i];
    return true;
  });
  KeyedRows own;
  for (const HostedClient* client : all) {
    const Evaluation& e = last_test_[client->state.client];
    std::vector<double> numbers;
    for (const auto* list : {&e.margin, &e.margin_implicit, &e.margin_explicit})
      numbers.insert(numbers.end(), list->begin(), list->end());
    own.add(client->state.client, numbers);
  }
  for (const auto& [client, numbers] : own.gather(in_.world)) {
    const auto& pairs =
        in_.partition.clients[static_cast<std::size_t>(client)].pairs[static_cast<std::size_t>(Split::test)];
    const std::size_t n = numbers.size() / 3;
    check(n == pairs.size(), "one margin a test pair");
    for (std::size_t i = 0; i < n; ++i) {
      margins.client.push_back(client);
      margins.pair.push_back(pairs[i]);
      margins.margin.push_back(numbers[i]);
      margins.margin_implicit.push_back(numbers[n + i]);
      margins.margin_explicit.push_back(numbers[2 * n + i]);
    }
  }
  return margins;
}

/// Data come to the models: private state never moves.
CrossEvaluation Federation::cross_evaluate() {
  CrossEvaluation cross;
  const std::size_t n = in_.partition.clients.size();
  std::vector<std::vector<ClientPair>> tests;
  for (std::size_t other = 0; other < n; ++other)
    tests.push_back(client_data(in_.partition, static_cast<int>(other), in_.reference).of(Split::test));
  KeyedRows own;
  clients_.visit(clients_in_groups(), Access::read_values, [&](HostedClient& client) {
    std::vector<double> accuracies;
    for (const std::vector<ClientPair>& pairs : tests) {
      const std::vector<float> weights = weigh_instances(client, pairs);
      use_backbone_of(client.state.client);
      accuracies.push_back(evaluate_on(client, pairs, weights, present_adapter()).accuracy);
    }
    own.add(client.state.client, accuracies);
    return true;
  });
  const auto by_client = own.gather(in_.world);
  if (in_.world.rank() != 0) return cross;
  cross.num_clients = n;
  cross.accuracy.assign(n * n, std::numeric_limits<double>::quiet_NaN());
  for (const auto& [client, row] : by_client)
    std::copy(row.begin(), row.end(),
              cross.accuracy.begin() + static_cast<std::ptrdiff_t>(client) * static_cast<std::ptrdiff_t>(n));
  return cross;
}

/// Clients that never trained receive the LoRA of the group whose model explains their train pairs best (of their own
/// domain's where groups are domains), and fit what is private.
NewClients Federation::fit_new_clients() {
  NewClients fitted;
  const RunOptions& o = in_.options;
  if (o.partition.num_new_clients == 0) return fitted;
  const std::vector<ServerState> states = server_states();
  std::optional<MovedBackbone> moved;
  KeyedRows own;
  std::vector<HostedClient*> newcomers;
  for (HostedClient& client : clients_.all())
    if (!group_of(client.state.client)) newcomers.push_back(&client);
  clients_.visit(newcomers, Access::train, [&](HostedClient& client) {
    const ClientShare& share = in_.partition.clients[static_cast<std::size_t>(client.state.client)];
    const auto receive = [&](std::size_t group) {
      if (layout_.shared_size() > 0) clients_.set_shared(client, states[group].values);
      policy_.use_backbone(in_.weights);
      if (states[group].residual.empty()) return;
      if (!moved) moved.emplace(in_.backend, in_.config, in_.weights);
      moved->move(layout_, states[group].residual);
      policy_.use_backbone(moved->weights());
    };
    const auto score = [&](Split split, Adapter adapter = Adapter::shared) {
      const std::vector<ClientPair>& pairs = client.data.of(split);
      std::vector<float> weights;
      if (adapter == Adapter::personal) weights = weigh_instances(client, pairs);
      return evaluate_on(client, pairs, weights, adapter);
    };
    std::size_t best = 0;
    double best_loss = std::numeric_limits<double>::infinity();
    for (std::size_t g = 0; g < states.size() && states.size() > 1; ++g) {
      if (o.groups == GroupKind::domain) {
        for (std::size_t c = 0; c < assignment_.size(); ++c)
          if (assignment_[c] == static_cast<int>(g) && in_.partition.clients[c].domain == share.domain) best = g;
        continue;
      }
      receive(g);
      if (const double loss = score(Split::train).loss; loss < best_loss) {
        best_loss = loss;
        best = g;
      }
    }
    receive(best);
    const double received = score(Split::test).accuracy;
    const Phase phase = private_phase(o.new_client_steps, false);
    if (personalization_) {
      // A new client's personal LoRA starts from what it received and is its own from then on: no pull, no mixture.
      const View values = clients_.buffers().values(client.state);
      in_.backend.copy(layout_.part(values, Group::lora_a), layout_.part(values, Group::personal_a));
      in_.backend.copy(layout_.part(values, Group::lora_b), layout_.part(values, Group::personal_b));
    }
    const Member member{&client.state, &client.data, client.data.of(Split::train)};
    for (int step = 0; step < phase.steps && !phase.trainable.empty(); ++step) {
      trainer_->step(std::span(&member, 1), o.rounds, phase.trainable, {}, phase.adapter);
      ++client.state.refit_done;
    }
    const Evaluation after = score(Split::test, phase.adapter);
    own.add(client.state.client, std::vector<double>{static_cast<double>(best), received, after.accuracy, after.loss});
    return true;
  });
  policy_.use_backbone(in_.weights);
  fitted.steps = o.new_client_steps;
  for (const auto& [client, row] : own.gather(in_.world)) {
    fitted.client.push_back(client);
    fitted.group.push_back(static_cast<std::int32_t>(row[0]));
    fitted.accuracy_received.push_back(row[1]);
    fitted.accuracy_fitted.push_back(row[2]);
    fitted.loss_fitted.push_back(row[3]);
  }
  return fitted;
}

}  // namespace fedpdpo
