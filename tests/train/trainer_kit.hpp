// A few clients in training on a golden model, with random pairs: what the tests of LocalTrainer and evaluate() share.
#pragma once

#include <algorithm>
#include <vector>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/train/evaluation.hpp"
#include "fedpdpo/train/local_trainer.hpp"
#include "golden_model.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {

inline constexpr Group all_groups[] = {Group::lora_a, Group::lora_b, Group::bottleneck, Group::head, Group::reward};
inline constexpr Group lora_groups[] = {Group::lora_a, Group::lora_b};
inline constexpr Group private_groups[] = {Group::bottleneck, Group::head, Group::reward};

/// `n` pairs of random tokens. No two have the same number of tokens, so that sums of tokens tell which were used;
/// every other pair's responses begin alike.
inline PairSet random_pairs(std::size_t n, std::uint64_t seed, std::int64_t vocab = 96) {
  PairFile file;
  file.path = "random.h5";
  file.domain = "random";
  file.content_hash = "hash of random pairs " + std::to_string(n) + " " + std::to_string(seed);
  file.vocab_size = vocab;
  file.label_names = {"random"};
  for (RaggedTokens* part : {&file.prompt, &file.chosen, &file.rejected}) part->offsets.push_back(0);
  RandomStream random({.seed = seed, .purpose = Purpose::test});
  const auto append = [&](RaggedTokens& part, std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i)
      part.tokens.push_back(static_cast<std::uint32_t>(random.below(static_cast<std::uint64_t>(vocab))));
    part.offsets.push_back(part.tokens.size());
  };
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t chosen = 2 + random.below(5), rejected = 2 + random.below(5);
    append(file.prompt, 14 + i - chosen - rejected);
    append(file.chosen, chosen);
    append(file.rejected, rejected);
    if (i % 2 == 0) file.rejected.tokens[file.rejected.offsets[i]] = file.chosen[i][0];
    file.label.push_back(0);
    file.split.push_back(Split::train);
  }
  PairSet set;
  set.label_names = file.label_names;
  set.global_label = {file.label};
  set.files.push_back(std::move(file));
  return set;
}

/// FedPDPO with every module, small.
inline AdapterOptions full_adapter() {
  AdapterOptions o;
  o.lora_rank = 4;
  o.lora_alpha = 8;
  o.head = HeadKind::full;
  o.bottleneck = 6;
  o.reward_head = true;
  return o;
}

/// Adam is a smooth map of the gradient only where epsilon is not small beside it; with 1e-8 a gradient that is zero
/// but for rounding moves a parameter by the whole rate in a direction that rounding decides.
inline TrainerOptions smooth_options() {
  TrainerOptions o;
  o.batch = 4;
  o.seed = 9;
  o.optimizer.lr_shared = o.optimizer.lr_private = 1e-2;
  o.optimizer.epsilon = 1e-2;
  return o;
}

/// The pairs of a file as a client sees them, with the pretrained model as the reference.
inline std::vector<ClientPair> with_reference(GoldenModel& model, const PairSet& pairs, bool flipped = false) {
  AdapterOptions nothing;
  nothing.lora_rank = 0;
  const ParameterLayout layout(model.folder.config(), nothing, {});
  Policy policy(*model.backend, model.folder.config(), model.weights, layout);
  std::vector<PairToPack> to_pack;
  for (std::uint32_t i = 0; i < pairs.files[0].size(); ++i) to_pack.push_back({{0, i}, flipped});
  const MemberPairs member{0, to_pack};
  PackedBatch batch;
  pack(pairs, std::span(&member, 1), policy.packing(), batch);
  std::vector<PairScores> scores(to_pack.size());
  policy.score(batch, {}, scores);
  std::vector<ClientPair> result;
  for (std::size_t i = 0; i < scores.size(); ++i)
    result.push_back({to_pack[i], scores[i].log_prob_chosen, scores[i].log_prob_rejected});
  return result;
}

enum class Start : std::uint8_t { initial, perturbed };

/// Clients 0, 1, ... in slots 0, 1, ...; they share a list of train pairs. `perturbed` moves every parameter off its
/// start, so that all of them have a gradient.
struct TrainerKit {
  TrainerKit(GoldenModel& m, const PairSet& set, const AdapterOptions& adapter, const TrainerOptions& options,
             int num_clients, int gradient_slots, Start start = Start::perturbed)
      : model(m),
        pairs(set),
        layout(m.folder.config(), adapter, {}),
        policy(*m.backend, m.folder.config(), m.weights, layout),
        buffers(*m.backend, layout, num_clients),
        states(static_cast<std::size_t>(num_clients)),
        data(static_cast<std::size_t>(num_clients)),
        train(with_reference(m, set)),
        trainer(*m.backend, pairs, layout, policy, buffers, options, gradient_slots) {
    for (int c = 0; c < num_clients; ++c) {
      const auto at = static_cast<std::size_t>(c);
      states[at].client = data[at].client = c;
      states[at].slot = c;
      const std::span<float> own = values(c);
      layout.initialize(4, c, m.weights.head, own);
      RandomStream random({.seed = 21, .purpose = Purpose::test, .client = static_cast<std::uint32_t>(c)});
      if (start == Start::perturbed)
        for (float& x : own) x += static_cast<float>(0.1 * random.normal());
    }
  }

  std::span<float> values(int client) { return row(buffers.values(states[static_cast<std::size_t>(client)])); }
  std::span<float> first_moment(int client) {
    return row(buffers.first_moment(states[static_cast<std::size_t>(client)]));
  }
  static std::span<float> row(View view) { return {view.f32(), static_cast<std::size_t>(view.size())}; }
  std::span<const float> part(std::span<const float> all, Group group) const {
    return all.subspan(layout.range(group).begin, layout.range(group).size());
  }
  std::vector<float> copy(int client) {
    const std::span<float> own = values(client);
    return {own.begin(), own.end()};
  }
  Member member(int client) {
    const auto at = static_cast<std::size_t>(client);
    return {&states[at], &data[at], train};
  }
  /// One local step of these clients together, then their step counts.
  void step(std::initializer_list<int> clients, int round = 1, std::span<const Group> trainable = all_groups,
            const LocalTrainer::Hook& hook = nullptr) {
    std::vector<Member> members;
    for (int client : clients) members.push_back(member(client));
    trainer.step(members, round, trainable, {hook, nullptr});
    for (const Member& m : members) ++m.state->steps_done;
  }

  /// Models of the clients, in passes that they share.
  std::optional<std::vector<Evaluation>> evaluate(std::span<const EvaluatedModel> models, const LossOptions& loss,
                                                  int micro_rows = 1024, Adapter adapter = Adapter::shared,
                                                  const std::function<bool()>& stop = nullptr) {
    return fedpdpo::evaluate(pairs, policy, buffers.parameters(adapter), models, loss, micro_rows, stop);
  }
  Evaluation evaluate(const EvaluatedModel& one, const LossOptions& loss, int micro_rows = 1024,
                      Adapter adapter = Adapter::shared) {
    return evaluate(std::span(&one, 1), loss, micro_rows, adapter)->front();
  }

  GoldenModel& model;
  const PairSet& pairs;
  ParameterLayout layout;
  Policy policy;
  ClientBuffers buffers;
  std::vector<ClientState> states;
  std::vector<ClientData> data;
  std::vector<ClientPair> train;
  LocalTrainer trainer;
};

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

}  // namespace fedpdpo::test
