// One combination of a bench's sweep: so many clients with so many pairs each, trained as cohorts by LocalTrainer.
#pragma once

#include <string>
#include <vector>

#include "commands.hpp"
#include "fedpdpo/backend/timed_backend.hpp"
#include "product_rate.hpp"

namespace fedpdpo {

/// What all combinations have in common.
struct BenchSetting {
  Backend& backend;
  const ModelConfig& config;
  const Weights& weights;
  const ParameterLayout& layout;
  const CommandLine& line;
  const PairSet& pairs;             ///< of one length, at least clients * pairs of every combination
  const std::vector<float>& start;  ///< of a client's trainables
  int rows_of_pair;                 ///< packed
  Operations operations_of_pair;
};

/// How a step of all clients is cut.
struct Passes {
  int cohort = 1;      ///< clients in lock-step
  int micro_rows = 0;  ///< TrainerOptions::micro_rows
};

/// A client's step is its forward and backward passes and AdamW; figures are of one step of every client.
struct BenchResult {
  int clients = 0, pairs = 0;
  Passes passes;
  int largest_pass = 0;  ///< packed rows
  double tokens = 0;     ///< of a step: prompt, chosen and rejected once
  Operations operations;
  std::vector<double> seconds;        ///< by repetition: mean over its steps
  std::vector<double> ceiling_rates;  ///< operations a second of a large product, measured before each repetition
  std::vector<double> layer_rates;    ///< and of the layers' own products with a pass's rows
  int steps_a_repeat = 0;
  std::size_t memory_bytes = 0;  ///< weights, clients and buffers at their most, without what is measured against
  std::string left_out;          ///< why there are no figures: "does not fit: ..." or "would take ..."
  bool does_not_fit = false;
  OperationTimes profile;

  double step_seconds() const;
  double pairs_per_second() const { return static_cast<double>(clients) * pairs / step_seconds(); }
  double rate() const { return operations.total() / step_seconds(); }
  double share_of_ceiling() const;
  double share_of_layers() const;
};

double median(std::vector<double> values);

/// `best_rate`: of the fastest combination so far, operations a second; 0 where there is none.
BenchResult run_bench_case(const BenchSetting& setting, int clients, int pairs, ProductRate& ceiling, double best_rate);
/// What a step asks of a counting backend, the setting's, which adds it to `counted`: a profile without seconds.
BenchResult count_bench_case(const BenchSetting& setting, int clients, int pairs, OperationTimes& counted);

}  // namespace fedpdpo
