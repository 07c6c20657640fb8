// SavedFederation: the models that a checkpoint holds, for those who are not a run: each client's personal model and
// the shared one of each aggregation group.
//
// A client's model is the one that the run evaluates as `after`: the average that it received with what is its own, its
// private modules and LoRA factors that do not travel; with a personal LoRA that one in the shared one's place.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/fed/options.hpp"
#include "fedpdpo/model/trained_model.hpp"
#include "fedpdpo/record/checkpoint.hpp"

namespace fedpdpo {

/// The fact "moment" of checkpoints that were made between two rounds.
inline constexpr const char* moment_between_rounds = "end-of-round";

class SavedFederation {
 public:
  /// `options` are the run's. InputError where the checkpoint lacks a fact or one does not read.
  SavedFederation(CheckpointReader reader, RunOptions options, const ModelConfig& config);

  const CheckpointReader& reader() const { return reader_; }
  const RunOptions& options() const { return options_; }
  /// True between two rounds: clients' models are what the last one ended with.
  bool is_at_end_of_round() const { return at_end_; }
  /// Rounds whose exchange is done.
  int rounds_done() const { return rounds_done_; }

  int num_clients() const { return static_cast<int>(group_of_client_.size()); }
  int num_groups() const { return num_groups_; }
  /// Aggregation group of a client; -1: one that never trained.
  int group_of(int client) const { return group_of_client_[static_cast<std::size_t>(client)]; }
  const std::string& name_of(int client) const { return names_[static_cast<std::size_t>(client)]; }
  bool is_flipped(int client) const { return flipped_[static_cast<std::size_t>(client)] != 0; }

  /// Empty, or why there is no model of this client that LoRA and private modules express (one sentence).
  std::string refuses_client(int client) const;
  /// Likewise of the shared model.
  std::string refuses_shared() const;
  /// The client's model, where refuses_client() is empty.
  TrainedModel client_model(int client) const;
  /// What all clients of a group share, on the pretrained head and without the modules that are private.
  TrainedModel shared_model(int group) const;

 private:
  std::vector<float> residual_of(int group) const;

  CheckpointReader reader_;
  RunOptions options_;
  const ModelConfig& config_;
  std::unique_ptr<FederatedMethod> method_;
  ParameterLayout layout_;  // the run's
  bool at_end_ = false;
  int rounds_done_ = 0, num_groups_ = 0;
  std::vector<int> group_of_client_, flipped_;
  std::vector<std::string> names_;
};

}  // namespace fedpdpo
