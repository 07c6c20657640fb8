// What `eval` finds, and the three ways in which it is told.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "commands.hpp"
#include "fedpdpo/train/evaluation.hpp"

namespace fedpdpo {

/// A model with the scores of every pair, in the order of EvaluationSetting::list.
struct ScoredModel {
  std::string name;          ///< "base", "merged client 3", "client 3", "shared 0", "adapter"
  int client = -1;           ///< -1: not a client's
  bool flipped = false;      ///< its preferences were swapped in its run
  bool has_rewards = false;  ///< it has a reward head
  LossOptions loss;          ///< what its margins are of
  std::vector<PairScores> scores{};
};

/// What all models are scored on.
struct EvaluationSetting {
  const CommandLine& line;
  const PairSet& pairs;
  const std::vector<ClientPair>& list;  ///< file after file
};

/// An evaluation of some of the pairs.
struct Summary {
  std::size_t num_pairs = 0;
  Evaluation evaluation;
  double accuracy_likelihood = 0;  ///< share with log pi(chosen) > log pi(rejected); a tie counts one half
};

Summary summarize(const ScoredModel& model, const EvaluationSetting& setting,
                  const std::function<bool(PairId)>& wanted);

/// For people: a line a model and file; a line a label, too, where there is one model beside the base.
std::string evaluation_table(const EvaluationSetting& setting, const std::vector<ScoredModel>& models);
/// All figures: models by file, by label and on all pairs.
std::string evaluation_json(const EvaluationSetting& setting, const std::vector<ScoredModel>& models);
/// The same with every pair's numbers, as HDF5 in run.h5's manner. Written all or nothing.
void write_evaluation_file(const std::filesystem::path& path, const EvaluationSetting& setting,
                           const std::vector<ScoredModel>& models,
                           const std::map<std::string, std::string>& environment);

}  // namespace fedpdpo
