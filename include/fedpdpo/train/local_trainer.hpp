// LocalTrainer: the local steps of a cohort. A step draws each member's batch, packs the members' pairs into
// micro-batches, runs the policy, and moves each member by AdamW with its own clipping and its own step counts: the
// mathematics is that of training the members one after another.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <vector>

#include "fedpdpo/train/client_state.hpp"
#include "fedpdpo/train/graphs.hpp"
#include "fedpdpo/train/losses.hpp"
#include "fedpdpo/train/optimizer_options.hpp"
#include "fedpdpo/train/policy.hpp"

namespace fedpdpo {

/// One run of local steps in which the listed groups are trained and all others are frozen.
struct Phase {
  int steps = 0;
  std::vector<Group> trainable;
  Adapter adapter = Adapter::shared;  ///< the LoRA that the model runs with
};

struct TrainerOptions {
  LossOptions loss;
  OptimizerOptions optimizer;
  int batch = 8;
  int micro_rows = 1024;
  int num_rounds = 1;
  std::uint64_t seed = 0;
  Graphs graphs = Graphs::small_passes;
};

/// A client in training.
struct Member {
  ClientState* state = nullptr;
  const ClientData* data = nullptr;
  std::span<const ClientPair> train;  ///< what batches are drawn from (usually data->of(Split::train))
};

class LocalTrainer {
 public:
  /// Called with a member's values and gradient: when the gradient is complete and not yet clipped, and after the
  /// optimizer's step.
  using Hook = std::function<void(const Member& member, View values, View gradient)>;
  struct Hooks {
    Hook before_step, after_step;
  };

  /// `gradient_slots`: 1 where members are trained one at a time, else the number of slots that `buffers` has.
  LocalTrainer(Backend& backend, const PairSet& pairs, const ParameterLayout& layout, Policy& policy,
               ClientBuffers& buffers, const TrainerOptions& options, int gradient_slots);

  /// One local step of the members (one, unless there are several gradient slots), in a round (1-based; it keys the
  /// learning rate and dropout).
  void step(std::span<const Member> members, int round, std::span<const Group> trainable, const Hooks& hooks,
            Adapter adapter = Adapter::shared);

 private:
  /// A pass of a step: which pairs of which member's batch each pair of `packed_` is.
  struct PassPairs {
    std::vector<std::size_t> owner, index;
  };
  using Cuts = std::vector<std::vector<std::size_t>>;  ///< by member, into its batch

  void draw_batch(const Member& member, std::vector<ClientPair>& batch);
  PassPairs pack_pass(std::span<const Member> members, const Cuts& cuts, std::size_t pass);
  /// Of each member's whole batch, whatever the cuts and the other members.
  std::vector<BatchStatistics> statistics(std::span<const Member> members, const Cuts& cuts, std::size_t num_passes,
                                          Adapter adapter);
  bool records(std::span<const MemberPairs> members) const;
  /// Clips and moves every member, all at once; a member whose gradient is not finite stays where it is.
  void apply(std::span<const Member> members, int round, std::span<const Group> trainable, const Hooks& hooks);
  View gradient(const ClientState& client) const;
  RowWeights lora_weights(std::span<const Member> members) const;

  Backend& backend_;
  const PairSet& pairs_;
  const ParameterLayout& layout_;
  Policy& policy_;
  ClientBuffers& buffers_;
  TrainerOptions options_;
  Tensor gradients_;                  // (gradient slots, size)
  std::int64_t gradient_stride_ = 0;  // 0: one buffer, whoever is trained
  struct EpochOrder {
    std::int64_t epoch = -1;
    std::vector<std::uint32_t> order;
  };
  std::map<int, EpochOrder> epochs_;  // by client: derived, never saved
  PackedBatch packed_;
  std::vector<std::vector<ClientPair>> batches_;
  std::vector<std::vector<PairToPack>> to_pack_;
  std::vector<PairScores> scores_;
};

}  // namespace fedpdpo
