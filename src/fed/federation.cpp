// The round loop: set-up, local training, evaluation; the exchange is in federation_exchange.cpp.
#include "fedpdpo/fed/federation.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "fedpdpo/core/error.hpp"
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
      clients_(input.backend, layout_, input.weights, input.partition, input.reference, clients_of_rank(input), table_,
               input.options.seed()) {
  const RunOptions& o = in_.options;
  if (layout_.size() == 0)
    throw InputError("", "--lora-rank, --head, --bottleneck, --reward-head", "at least one trainable module", "none");
  if (in_.method.data_scope() == DataScope::pooled) pool_ = pooled_pairs();
  if (!clients_.all().empty()) {
    TrainerOptions trainer{loss_, o.optimizer, o.batch, o.micro_rows, o.rounds, o.seed()};
    const int slots = o.cohort > 1 ? static_cast<int>(clients_.all().size()) : 1;
    trainer_ =
        std::make_unique<LocalTrainer>(in_.backend, in_.pairs, layout_, policy_, clients_.buffers(), trainer, slots);
  }

  const std::vector<int> group_of_client = group_of_clients(o.groups, in_.partition);
  const int num_groups_of_clients = 1 + *std::max_element(group_of_client.begin(), group_of_client.end());
  // The server starts where client 0 starts; LoRA's start is the same for all.
  std::vector<float> initial(layout_.size());
  layout_.initialize(o.seed(), 0, in_.weights.head, initial);
  initial.resize(layout_.shared_size());
  for (int g = 0; g < num_groups_of_clients; ++g) {
    std::vector<int> members;
    std::set<int> ranks;
    for (std::size_t c = 0; c < group_of_client.size(); ++c) {
      if (group_of_client[c] != g) continue;
      members.push_back(static_cast<int>(c));
      ranks.insert(in_.placement.rank_of_client[c]);
    }
    if (!ranks.contains(in_.world.rank())) continue;
    const std::vector<int> rank_list(ranks.begin(), ranks.end());
    groups_.push_back(
        std::make_unique<AggregationGroup>(in_.world, g, rank_list, members, layout_.shared_blocks(), o.reduce));
    groups_.back()->server.values = initial;
  }
  for (const auto& group : groups_) distribute(*group);
  if (in_.world.rank() == 0) {
    history_ = std::make_unique<History>(o.rounds);
    table_.define(*history_, static_cast<int>(in_.partition.clients.size()));
    history_->define(
        "/rounds/lora_aggregation_error", static_cast<std::size_t>(in_.config.num_layers), "1",
        "Frobenius norm of sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i) over a layer's LoRA sites, mean over "
        "aggregation groups; NaN where not both factors are averaged");
    for (const char* phase : phase_names)
      history_->define(std::string("/timings/") + phase, 1, "s", std::string("seconds of the slowest rank: ") + phase);
  }
  if (o.resume == Resume::automatic) restore();
}

std::vector<ClientPair> Federation::pooled_pairs() const {
  std::vector<ClientPair> pool;
  for (std::size_t c = 0; c < in_.partition.clients.size(); ++c) {
    const ClientData data = client_data(in_.partition, static_cast<int>(c), in_.reference);
    pool.insert(pool.end(), data.of(Split::train).begin(), data.of(Split::train).end());
  }
  return pool;
}

AggregationGroup* Federation::group_of(int client) {
  for (const auto& group : groups_)
    if (std::binary_search(group->clients().begin(), group->clients().end(), client)) return group.get();
  return nullptr;
}

bool Federation::is_evaluated(int round) const {
  const RunOptions& o = in_.options;
  return round == 0 || round == o.rounds || (o.eval_every > 0 && round % o.eval_every == 0);
}

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
  return in_.method.plan_round(round, scheduled);
}

std::vector<int> Federation::participants(const AggregationGroup& group, int round) const {
  if (in_.method.data_scope() == DataScope::pooled) return {group.clients().front()};
  return draw_participants(group.clients(), in_.options.participation, in_.options.seed(), round, group.index());
}

bool Federation::participates(int client) const { return std::binary_search(present_.begin(), present_.end(), client); }

void Federation::begin_round() {
  present_.clear();
  if (round_ == 0) return;
  for (const auto& group : groups_)
    for (int client : participants(*group, round_))
      if (clients_.find(client)) present_.push_back(client);
  std::sort(present_.begin(), present_.end());
  // Refitting may have moved what is shared; the next round starts from the server's x all the same.
  if (stage_ == Stage::before_exchange && in_.method.refits_everything())
    for (HostedClient& client : clients_.all())
      if (client.state.steps_done == 0) clients_.set_shared(client, group_of(client.state.client)->server.values);
  if (stage_ != Stage::before_exchange || in_.options.optimizer.moments != Moments::reset) return;
  for (HostedClient& client : clients_.all()) {
    if (client.state.steps_done > 0 || !participates(client.state.client)) continue;
    in_.backend.fill(clients_.buffers().first_moment(client.state), 0.0f);
    in_.backend.fill(clients_.buffers().second_moment(client.state), 0.0f);
    client.state.adam_steps = {};
  }
}

bool Federation::train_locally() {
  PhaseTimer timer(seconds_["train"]);
  const std::vector<Phase> plan = phases(round_);
  std::vector<HostedClient*> waiting;
  for (int client : present_) waiting.push_back(clients_.find(client));
  // Members of a cohort go in step, so after a resume those that are equally far train together.
  std::stable_sort(waiting.begin(), waiting.end(),
                   [](const auto* a, const auto* b) { return a->state.steps_done > b->state.steps_done; });
  const auto cohort = static_cast<std::size_t>(std::max(1, in_.options.cohort));
  for (std::size_t begin = 0; begin < waiting.size();) {
    std::size_t end = begin + 1;
    while (end < waiting.size() && end - begin < cohort &&
           waiting[end]->state.steps_done == waiting[begin]->state.steps_done)
      ++end;
    if (!train_cohort(std::span(waiting).subspan(begin, end - begin), plan)) return false;
    begin = end;
  }
  return true;
}

bool Federation::train_cohort(std::span<HostedClient* const> cohort, std::span<const Phase> plan) {
  std::vector<Member> members;
  for (HostedClient* client : cohort) {
    const bool pooled = in_.method.data_scope() == DataScope::pooled;
    members.push_back(
        {&client->state, &client->data,
         pooled ? std::span<const ClientPair>(pool_) : std::span<const ClientPair>(client->data.of(Split::train))});
  }
  LocalTrainer::Hooks hooks;
  hooks.before_step = [&](const Member& member, View values, View gradient) {
    in_.method.adjust_gradient(local_step(*member.state, values, gradient));
  };
  hooks.after_step = [&](const Member& member, View values, View gradient) {
    in_.method.adjust_step(local_step(*member.state, values, gradient));
  };
  int done = cohort.front()->state.steps_done;
  int first = 0;
  for (const Phase& phase : plan) {
    for (; done < first + phase.steps; ++done) {
      if (stop_requested()) return false;
      trainer_->step(members, round_, phase.trainable, trains_shared(phase) ? hooks : LocalTrainer::Hooks{});
      for (HostedClient* client : cohort) client->state.steps_done = done + 1;
    }
    first += phase.steps;
  }
  return true;
}

bool Federation::trains_shared(const Phase& phase) const {
  return std::any_of(phase.trainable.begin(), phase.trainable.end(),
                     [&](Group group) { return layout_.is_shared(group) && layout_.has(group); });
}

bool Federation::refit() {
  std::vector<Group> trained = private_groups();
  if (in_.method.refits_everything())
    for (Group group : {Group::lora_a, Group::lora_b})
      if (layout_.has(group)) trained.push_back(group);
  if (in_.options.refit <= 0 || trained.empty() || round_ == 0) return true;
  PhaseTimer timer(seconds_["train"]);
  // Everybody's model meets the new average, also a client's that was not sampled.
  for (HostedClient& client : clients_.all()) {
    const Member member{&client.state, &client.data, client.data.of(Split::train)};
    while (client.state.refit_done < in_.options.refit) {
      if (stop_requested()) return false;
      trainer_->step(std::span(&member, 1), round_, trained, {});
      ++client.state.refit_done;
    }
  }
  return true;
}

bool Federation::evaluate_all(Point point) {
  if (!is_evaluated(round_)) return true;
  PhaseTimer timer(seconds_["evaluate"]);
  const bool pooled = in_.method.data_scope() == DataScope::pooled;
  // Without an exchange (and without refit) the model is the same at both points; the pooled model is everybody's only
  // after it.
  const bool same = round_ == 0 || pooled || (layout_.shared_size() == 0 && in_.options.refit == 0);
  if (same && point == Point::before) return true;
  for (HostedClient& client : clients_.all()) {
    for (Split split : splits_) {
      const auto evaluation = evaluate(in_.pairs, policy_, clients_.buffers().parameters(), client.state.slot, loss_,
                                       client.data.of(split), in_.options.micro_rows, stop_requested);
      if (!evaluation) return false;
      table_.set_evaluation(client.row, split, point, *evaluation);
      if (split == Split::test && point == Point::after) last_test_[client.state.client] = *evaluation;
    }
    if (same) table_.copy_evaluation(client.row, Point::after, Point::before);
  }
  return true;
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
    save_or_throw(!last && any_rank(stop_requested()));
    const int every = in_.options.checkpoint_every;
    if (every > 0 && round_ > 1 && (last || (round_ - 1) % every == 0)) save();
  }
  const FinalMargins margins = gather_margins();
  if (run_file) {
    run_file->write_history(*history_);
    if (!margins.client.empty()) run_file->write_final(margins);
    run_file->finish();
  }
}

}  // namespace fedpdpo
