// Local steps.
#include "fedpdpo/train/local_trainer.hpp"

#include <algorithm>
#include <cmath>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/random.hpp"
#include "fedpdpo/train/evaluation.hpp"

namespace fedpdpo {
namespace {

bool is_lora(Group group) { return group == Group::lora_a || group == Group::lora_b; }

}  // namespace

double rate_factor(const OptimizerOptions& o, int round, int num_rounds) {
  if (round <= o.warmup_rounds) return static_cast<double>(round) / (o.warmup_rounds + 1);
  if (o.schedule == RateSchedule::constant) return 1;
  const double progress = static_cast<double>(round - o.warmup_rounds - 1) / std::max(1, num_rounds - o.warmup_rounds);
  return 0.5 * (1 + std::cos(M_PI * progress));
}

LocalTrainer::LocalTrainer(Backend& backend, const PairSet& pairs, const ParameterLayout& layout, Policy& policy,
                           ClientBuffers& buffers, const TrainerOptions& options, int gradient_slots)
    : backend_(backend), pairs_(pairs), layout_(layout), policy_(policy), buffers_(buffers), options_(options) {
  const auto size = static_cast<std::int64_t>(layout.size());
  check(size > 0 && gradient_slots > 0, "nothing to train");
  gradient_stride_ = gradient_slots > 1 ? buffers.stride() : 0;
  gradients_ = Tensor(backend, gradient_slots, buffers.stride());
}

View LocalTrainer::gradient(const ClientState& client) const {
  const auto size = static_cast<std::int64_t>(layout_.size());
  return {gradients_.view().f32() + client.slot * gradient_stride_, 1, size, size, DType::f32};
}

void LocalTrainer::draw_batch(const Member& member, std::vector<ClientPair>& batch) {
  batch.clear();
  const auto n = static_cast<std::int64_t>(member.train.size());
  check(n > 0, "a client without train pairs");
  EpochOrder& epoch = epochs_[member.state->client];
  for (int i = 0; i < options_.batch; ++i, ++member.state->pairs_drawn) {
    const std::int64_t now = member.state->pairs_drawn / n;
    if (epoch.epoch != now || static_cast<std::int64_t>(epoch.order.size()) != n) {
      RandomStream stream({options_.seed, Purpose::batches, static_cast<std::uint32_t>(member.state->client),
                           static_cast<std::uint32_t>(now), 0});
      epoch.order = stream.permutation(static_cast<std::uint32_t>(n));
      epoch.epoch = now;
    }
    batch.push_back(member.train[epoch.order[static_cast<std::size_t>(member.state->pairs_drawn % n)]]);
  }
}

bool LocalTrainer::records(std::span<const MemberPairs> members) const {
  if (options_.graphs == Graphs::never || !backend_.supports_recording() || layout_.options().lora_dropout > 0)
    return false;
  if (options_.graphs == Graphs::always) return true;
  std::int64_t rows = 0;
  for (const MemberPairs& member : members)
    for (const PairToPack& pair : member.pairs)
      rows += packed_rows(pairs_.files[pair.id.file], pair.id.index, policy_.packing());
  return rows <= small_pass_rows;
}

LocalTrainer::PassPairs LocalTrainer::pack_pass(std::span<const Member> members, const Cuts& cuts, std::size_t pass) {
  PassPairs result;
  std::vector<MemberPairs> packed_members;
  for (std::size_t i = 0; i < members.size(); ++i) {
    const std::size_t begin = pass + 1 < cuts[i].size() ? cuts[i][pass] : to_pack_[i].size();
    const std::size_t end = pass + 1 < cuts[i].size() ? cuts[i][pass + 1] : to_pack_[i].size();
    packed_members.push_back({members[i].state->slot, std::span(to_pack_[i]).subspan(begin, end - begin)});
    for (std::size_t j = begin; j < end; ++j) {
      result.owner.push_back(i);
      result.index.push_back(j);
    }
  }
  PackingOptions packing = policy_.packing();
  if (records(packed_members)) packing.filling = Filling::size_classes;
  pack(pairs_, packed_members, packing, packed_);
  scores_.assign(packed_.pairs.size(), {});
  return result;
}

// A forward pass of its own over the whole step, since the first derivative already needs the last pair's score. It is
// without dropout: the numbers are constants of the loss, and the model's own rather than a mask's.
std::vector<BatchStatistics> LocalTrainer::statistics(std::span<const Member> members, const Cuts& cuts,
                                                      std::size_t num_passes, Adapter adapter) {
  std::vector<BatchStatistics> result(members.size());
  if (!loss_needs_statistics(options_.loss.kind)) return result;
  std::vector<std::vector<PairScores>> all(members.size());
  for (std::size_t pass = 0; pass < num_passes; ++pass) {
    const PassPairs at = pack_pass(members, cuts, pass);
    policy_.score(packed_, buffers_.parameters(adapter), scores_, lora_weights(members));
    for (std::size_t pair = 0; pair < scores_.size(); ++pair) {
      add_reference(scores_[pair], batches_[at.owner[pair]][at.index[pair]]);
      all[at.owner[pair]].push_back(scores_[pair]);
    }
  }
  for (std::size_t i = 0; i < members.size(); ++i) result[i] = batch_statistics(options_.loss, all[i]);
  return result;
}

void LocalTrainer::step(std::span<const Member> members, int round, std::span<const Group> trainable,
                        const Hooks& hooks, Adapter adapter) {
  const std::size_t num_members = members.size();
  check(num_members > 0 && (gradient_stride_ > 0 || num_members == 1), "step: more members than the cohort has slots");
  batches_.resize(num_members);
  to_pack_.resize(num_members);
  Cuts cuts(num_members);
  std::vector<StreamId> streams;
  std::vector<std::int64_t> first_rows(num_members, 0);
  const PackingOptions packing = policy_.packing();
  // Members share the rows of a pass; each one's cuts depend on its own pairs alone.
  const auto rows_each = std::max(1, options_.micro_rows / static_cast<int>(num_members));
  std::size_t num_passes = 0;
  for (std::size_t i = 0; i < num_members; ++i) {
    draw_batch(members[i], batches_[i]);
    to_pack_[i].clear();
    for (const ClientPair& pair : batches_[i]) to_pack_[i].push_back(pair.pair);
    cuts[i] = cut_by_rows(pairs_, to_pack_[i], packing, rows_each);
    num_passes = std::max(num_passes, cuts[i].size() - 1);
    const ClientState& state = *members[i].state;
    streams.push_back({options_.seed, Purpose::dropout, static_cast<std::uint32_t>(state.client),
                       static_cast<std::uint32_t>(round),
                       static_cast<std::uint32_t>(state.steps_done + state.refit_done)});
  }

  const std::vector<BatchStatistics> batch = statistics(members, cuts, num_passes, adapter);
  CohortGradients gradients{gradients_.view().f32(), gradient_stride_, Write::overwrite, {}};
  for (Group group : trainable) gradients.wanted[static_cast<std::size_t>(group)] = layout_.has(group);
  const LoraDropout dropout{static_cast<float>(layout_.options().lora_dropout), streams, first_rows};
  for (std::size_t pass = 0; pass < num_passes; ++pass) {
    const PassPairs at = pack_pass(members, cuts, pass);
    const auto loss = [&](std::size_t pair, PairScores& scores) {
      const Member& member = members[at.owner[pair]];
      const ClientPair& source = batches_[at.owner[pair]][at.index[pair]];
      add_reference(scores, source);
      PairLoss result = preference_loss(options_.loss, scores, batch[at.owner[pair]]);
      RoundSums& sums = member.state->sums;
      sums.loss += result.loss;
      sums.correct += half_ties(result.margin);
      sums.pairs += 1;
      sums.tokens += static_cast<double>(pairs_.files[source.pair.id.file].num_tokens(source.pair.id.index));
      const double share = 1.0 / options_.batch;
      result.d_log_prob_chosen *= share;
      result.d_log_prob_rejected *= share;
      result.d_reward_chosen *= share;
      result.d_reward_rejected *= share;
      return result;
    };
    policy_.train(packed_, buffers_.parameters(adapter), gradients, loss, scores_, dropout, lora_weights(members));
    gradients.write = Write::accumulate;
    // A member's masks follow its own rows: neither the cuts nor the rest of the cohort change them.
    for (std::size_t i = 0; i < num_members; ++i) first_rows[i] += packed_.clients[i].end - packed_.clients[i].begin;
  }
  apply(members, round, trainable, hooks);
}

RowWeights LocalTrainer::lora_weights(std::span<const Member> members) const {
  RowWeights weights;
  if (std::all_of(members.begin(), members.end(), [](const Member& m) { return m.state->lora_weight == 1; }))
    return weights;
  for (std::size_t i = 0; i < members.size(); ++i)
    weights.shared.resize(static_cast<std::size_t>(packed_.clients[i].end), members[i].state->lora_weight);
  return weights;
}

void LocalTrainer::apply(std::span<const Member> members, int round, std::span<const Group> trainable,
                         const Hooks& hooks) {
  std::vector<Group> groups;
  for (Group group : trainable)
    if (layout_.has(group)) groups.push_back(group);
  std::vector<ConstView> gradients;
  for (const Member& member : members) {
    const View whole = gradient(*member.state);
    if (hooks.before_step) hooks.before_step(member, buffers_.values(*member.state), whole);
    for (Group group : groups) gradients.push_back(layout_.part(whole, group));
  }
  std::vector<double> squares(gradients.size());
  backend_.squared_norms(gradients, squares);

  const OptimizerOptions& o = options_.optimizer;
  const double factor = rate_factor(o, round, options_.num_rounds);
  std::vector<AdamWSpan> spans;
  std::vector<const Member*> moved;
  for (std::size_t i = 0; i < members.size(); ++i) {
    ClientState& state = *members[i].state;
    double squared_lora = 0, squared_private = 0;
    for (std::size_t g = 0; g < groups.size(); ++g)
      (is_lora(groups[g]) ? squared_lora : squared_private) += squares[i * groups.size() + g];
    const double norm = std::sqrt(squared_lora + squared_private);
    state.sums.steps += 1;
    if (!std::isfinite(norm)) {
      state.sums.finite = false;
      continue;
    }
    state.sums.gradient_norm_shared += std::sqrt(squared_lora);
    state.sums.gradient_norm_private += std::sqrt(squared_private);
    moved.push_back(&members[i]);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto part = [&](View view) { return layout_.part(view, groups[g]); };
      AdamWSpan& span = spans.emplace_back();
      AdamW& adamw = span.options;
      adamw.beta1 = static_cast<float>(o.beta1);
      adamw.beta2 = static_cast<float>(o.beta2);
      adamw.epsilon = static_cast<float>(o.epsilon);
      adamw.weight_decay = static_cast<float>(o.weight_decay);
      adamw.gradient_scale = o.clip > 0 ? static_cast<float>(std::min(1.0, o.clip / (norm + 1e-6))) : 1.0f;
      adamw.learning_rate = static_cast<float>((is_lora(groups[g]) ? o.lr_shared : o.lr_private) * factor);
      adamw.step = ++state.adam_steps[static_cast<std::size_t>(groups[g])];
      span.values = part(buffers_.values(state));
      span.gradients = gradients[i * groups.size() + g];
      span.first_moment = part(buffers_.first_moment(state));
      span.second_moment = part(buffers_.second_moment(state));
    }
  }
  backend_.adamw_spans(spans);
  if (hooks.after_step)
    for (const Member* member : moved)
      hooks.after_step(*member, buffers_.values(*member->state), gradient(*member->state));
}

}  // namespace fedpdpo
