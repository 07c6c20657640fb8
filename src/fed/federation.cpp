// The round loop: set-up and local training. Groups, evaluation, exchange, record and checkpoint are in files of their
// own.
#include "fedpdpo/fed/federation.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/evaluation_schedule.hpp"
#include "fedpdpo/fed/stop_signal.hpp"
#include "phase_timer.hpp"

namespace fedpdpo {
namespace {

LossOptions effective_loss(const RunOptions& options) {
  LossOptions loss = options.loss;
  if (!options.adapter.reward_head) loss.lambda = loss.mu = 0;
  return loss;
}

std::vector<int> clients_of_rank(const FederationInput& in) { return in.placement.clients_of(in.world.rank()); }

}  // namespace

Federation::Federation(const FederationInput& input)
    : in_(input),
      splits_(parse_splits(input.options.eval_splits)),
      layout_(input.config, input.options.adapter, input.method.shared_groups()),
      table_(splits_),
      loss_(effective_loss(input.options)),
      policy_(input.backend, input.config, input.weights, layout_),
      clients_(input.backend, layout_, input.partition, input.reference, clients_of_rank(input), table_) {
  const RunOptions& o = in_.options;
  if (layout_.size() == 0)
    throw InputError("", "--lora-rank, --head, --bottleneck, --reward-head", "at least one trainable module", "none");
  if (in_.method.data_scope() == DataScope::pooled) pool_ = pooled_pairs();
  std::optional<CheckpointReader> begun;
  if (o.resume == Resume::automatic) begun = CheckpointReader::find(in_.world, checkpoint_directory(in_.options));
  if (begun) require_same_run(*begun);
  take_cohort(begun ? &*begun : nullptr);
  clients_.initialize(in_.weights.head, o.seed());

  personalization_ =
      make_personalization({o.adapter.personal_lora, o.personal_prox, o.personal_mix, o.personal_samples});
  if (!o.lora_ranks.empty())
    for (HostedClient& client : clients_.all()) clients_.set_rank(client, o.lora_rank_of(client.state.client));
  form_groups(group_of_clients(o, in_.partition));
  // The server starts where client 0 starts; LoRA's start is the same for all.
  std::vector<float> initial(layout_.size());
  layout_.initialize(o.seed(), 0, in_.weights.head, initial);
  initial.resize(layout_.shared_size());
  for (const auto& group : groups_) {
    group->server.values = initial;
    distribute(*group);
  }
  if (in_.world.rank() == 0) {
    history_ = std::make_unique<History>(o.rounds);
    table_.define(*history_, static_cast<int>(in_.partition.clients.size()));
    history_->define(
        "/rounds/lora_aggregation_error", static_cast<std::size_t>(in_.config.num_layers), "1",
        "Frobenius norm of sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i) over a layer's LoRA sites, mean over "
        "aggregation groups; NaN where not both factors are averaged");
    if (o.privacy.clip > 0)
      for (const auto& [name, text] : {std::pair{"epsilon", "of client-level differential privacy up to this round"},
                                       {"delta", "for which epsilon is told"}})
        history_->define(std::string("/rounds/privacy/") + name, 1, "1", text);
    for (const char* phase : phase_names)
      history_->define(std::string("/timings/") + phase, 1, "s", std::string("seconds of the slowest rank: ") + phase);
  }
  if (begun) restore(*begun);
}

std::vector<ClientPair> Federation::pooled_pairs() const {
  std::vector<ClientPair> pool;
  for (std::size_t c = 0; c < in_.partition.clients.size(); ++c) {
    const ClientData data = client_data(in_.partition, static_cast<int>(c), in_.reference);
    pool.insert(pool.end(), data.of(Split::train).begin(), data.of(Split::train).end());
  }
  return pool;
}

bool Federation::is_evaluated(int round) const { return is_evaluated_round(in_.options, round); }

std::vector<Group> Federation::private_groups() const {
  std::vector<Group> groups;
  for (Group group : {Group::bottleneck, Group::head, Group::reward})
    if (layout_.has(group)) groups.push_back(group);
  return groups;
}

std::vector<Phase> Federation::phases(int round) const {
  const RunOptions& o = in_.options;
  int steps = o.steps;
  if (in_.method.data_scope() == DataScope::pooled) steps *= static_cast<int>(in_.partition.clients.size());
  const std::vector<Group> own = private_groups();
  std::vector<Group> lora;
  for (Group group : {Group::lora_a, Group::lora_b})
    if (layout_.has(group)) lora.push_back(group);
  std::vector<Group> all(lora);
  all.insert(all.end(), own.begin(), own.end());
  std::vector<Phase> scheduled{{steps, all}};
  if (o.schedule == LocalSchedule::alternate && !own.empty() && !lora.empty()) {
    const auto first = static_cast<int>(std::lround(o.private_share * steps));
    scheduled = {{first, own}, {steps - first, lora}};
  }
  std::vector<Phase> plan = in_.method.plan_round(round, scheduled);
  return personalization_ ? personalization_->plan_round(std::move(plan)) : plan;
}

void Federation::begin_round() {
  present_.clear();
  if (round_ == 0) return;
  if (!std::exchange(resumed_, false)) drawn_ = participants(round_);
  for (int client : drawn_)
    if (clients_.find(client)) present_.push_back(client);
  if (stage_ != Stage::before_exchange) return;
  for (HostedClient& client : clients_.all()) {
    if (client.state.steps_done > 0) continue;
    // Refitting may have moved what is shared; the next round starts from the server's x all the same.
    if (const AggregationGroup* group = group_of(client.state.client); group && in_.method.refits_everything())
      clients_.set_shared(client, group->server.values);
    if (participates(client.state.client)) restart_moments(client);
  }
}

void Federation::restart_moments(HostedClient& client) {
  if (in_.options.optimizer.moments == Moments::reset) {
    clients_.clear_moments(client, {0, layout_.size()});
    client.state.adam_steps = {};
    return;
  }
  for (Group group : in_.method.restarted_groups()) {
    if (!layout_.has(group)) continue;
    clients_.clear_moments(client, layout_.range(group));
    client.state.adam_steps[static_cast<std::size_t>(group)] = 0;
  }
}

bool Federation::train_locally() {
  PhaseTimer timer(seconds_["train"]);
  const std::vector<Phase> plan = phases(round_);
  int steps = 0;
  for (const Phase& phase : plan) steps += phase.steps;
  std::vector<HostedClient*> waiting;
  for (int number : present_)
    if (HostedClient* const client = clients_.find(number); client->state.steps_done < steps) waiting.push_back(client);
  const auto done = [](const HostedClient& client) { return client.state.steps_done; };
  return clients_.visit(cohorts(waiting, done), Access::train,
                        [&](std::span<HostedClient* const> cohort) { return train_cohort(cohort, plan); });
}

bool Federation::train_cohort(std::span<HostedClient* const> cohort, std::span<const Phase> plan) {
  const bool pooled = in_.method.data_scope() == DataScope::pooled;
  std::vector<Member> members;
  for (HostedClient* client : cohort)
    members.push_back({&client->state, &client->data, pooled ? pool_ : client->data.of(Split::train)});
  use_backbone_of(cohort.front()->state.client);
  int done = cohort.front()->state.steps_done;
  int first = 0;
  for (const Phase& phase : plan) {
    const LocalTrainer::Hooks around = hooks(phase);
    for (; done < first + phase.steps; ++done) {
      if (stop_requested()) return false;
      trainer_->step(members, round_, phase.trainable, around, phase.adapter);
      for (HostedClient* client : cohort) client->state.steps_done = done + 1;
    }
    first += phase.steps;
  }
  return true;
}

bool Federation::trains(const Phase& phase, bool shared) const {
  return std::any_of(phase.trainable.begin(), phase.trainable.end(), [&](Group group) {
    return layout_.has(group) &&
           (shared ? layout_.is_shared(group) : group == Group::personal_a || group == Group::personal_b);
  });
}

/// The method sees the steps that train something shared, personalization those and the ones of the personal LoRA.
LocalTrainer::Hooks Federation::hooks(const Phase& phase) {
  const bool shared = trains(phase, true), personal = trains(phase, false);
  if (!shared && !personal) return {};
  const auto step_of = [this, phase](const Member& member, View values, View gradient) {
    LocalStep step = local_step(*member.state, values, gradient);
    step.trained = phase.trainable;
    return step;
  };
  LocalTrainer::Hooks hooks;
  hooks.before_step = [=, this](const Member& member, View values, View gradient) {
    const LocalStep step = step_of(member, values, gradient);
    if (shared) in_.method.adjust_gradient(step);
    if (personal) personalization_->adjust_gradient(step);
  };
  hooks.after_step = [=, this](const Member& member, View values, View gradient) {
    const LocalStep step = step_of(member, values, gradient);
    if (shared) in_.method.adjust_step(step);
    if (personalization_) personalization_->adjust_step(step, phase.adapter);
  };
  return hooks;
}

/// Of what is the client's own: the private modules, LoRA factors that do not travel, and the personal LoRA (as if it
/// stood in the shared one's place); `everything`: shared LoRA too. What the method keeps frozen stays so.
Phase Federation::private_phase(int steps, bool everything) const {
  Phase phase{steps, private_groups()};
  for (Group group : {Group::lora_a, Group::lora_b})
    if (layout_.has(group) && (everything || personalization_ || !layout_.is_shared(group)))
      phase.trainable.push_back(group);
  const std::vector<Phase> plan = in_.method.plan_round(std::max(1, round_), {std::move(phase)});
  if (plan.empty()) return {};
  return personalization_ ? with_personal_lora(plan.front()) : plan.front();
}

bool Federation::refit() {
  const Phase phase = private_phase(in_.options.refit, in_.method.refits_everything());
  if (phase.steps <= 0 || phase.trainable.empty() || round_ == 0) return true;
  PhaseTimer timer(seconds_["train"]);
  const LocalTrainer::Hooks around = personalization_ ? hooks(phase) : LocalTrainer::Hooks{};
  // Everybody's model meets the new average, also a client's that was not sampled.
  std::vector<HostedClient*> waiting = clients_in_groups();
  std::erase_if(waiting, [&](const HostedClient* client) { return client->state.refit_done >= phase.steps; });
  const auto refitted = [](const HostedClient& client) { return client.state.refit_done; };
  return clients_.visit(cohorts(waiting, refitted), Access::train, [&](std::span<HostedClient* const> cohort) {
    std::vector<Member> members;
    for (HostedClient* client : cohort)
      members.push_back({&client->state, &client->data, client->data.of(Split::train)});
    use_backbone_of(cohort.front()->state.client);
    for (int done = refitted(*cohort.front()); done < phase.steps; ++done) {
      if (stop_requested()) return false;
      trainer_->step(members, round_, phase.trainable, around, phase.adapter);
      for (HostedClient* client : cohort) client->state.refit_done = done + 1;
    }
    return true;
  });
}

bool Federation::any_rank(bool value) const {
  std::int64_t flag = value ? 1 : 0;
  in_.world.max(std::span(&flag, 1));
  return flag != 0;
}

void Federation::run(RunFile* run_file) {
  check((run_file != nullptr) == (in_.world.rank() == 0), "the run file belongs to rank 0");
  const int rounds = in_.options.rounds;
  while (round_ <= rounds) {
    begin_round();
    if (stage_ == Stage::before_exchange) {
      const bool done = round_ == 0 || (train_locally() && evaluate_all(Point::before));
      save_or_throw(any_rank(!done || stop_requested()));
      if (round_ > 0) exchange();
      stage_ = Stage::after_exchange;
    }
    const bool done = refit() && evaluate_all(Point::after);
    save_or_throw(any_rank(!done));
    record(run_file);
    const bool last = round_ == rounds;
    for (HostedClient& client : clients_.all()) {
      client.state.steps_done = client.state.refit_done = 0;
      client.state.sums = {};
      client.row = table_.empty_row();
    }
    seconds_.clear();
    aggregation_error_.clear();
    ++round_;
    serial_ = 0;
    stage_ = Stage::before_exchange;
    save_or_throw(!last && any_rank(stop_requested()), Moment::end_of_round);
    const int every = in_.options.checkpoint_every;
    if (every > 0 && round_ > 1 && (last || (round_ - 1) % every == 0)) save(Moment::end_of_round);
  }
  const FinalMargins margins = gather_margins();
  const CrossEvaluation cross = in_.options.cross_eval ? cross_evaluate() : CrossEvaluation{};
  const NewClients newcomers = fit_new_clients();
  if (run_file) {
    run_file->write_history(*history_);
    if (!margins.client.empty()) run_file->write_final(margins);
    if (cross.num_clients > 0) run_file->write_cross(cross);
    if (!newcomers.client.empty()) run_file->write_new_clients(newcomers);
    run_file->finish();
  }
}

}  // namespace fedpdpo
