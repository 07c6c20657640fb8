// A bench's figures, for people and for programs.
#pragma once

#include <string>
#include <vector>

#include "bench_case.hpp"

namespace fedpdpo {

/// What the figures were made with.
struct BenchFacts {
  const CommandLine& line;
  const ModelConfig& config;
  const ParameterLayout& layout;
  const Backend& backend;
  std::string model;          ///< its name
  std::string ceiling;        ///< the large product in words
  int rows = 0, targets = 0;  ///< of a packed pair
  double setup_seconds = 0;   ///< backend and weights
};

/// Lines above the table and its head.
std::string bench_heading(const BenchFacts& facts);
/// A line of the table.
std::string bench_line(const BenchResult& result);
/// What operations take, the longest first, or what they have to do where it has been counted.
std::string bench_profile(const BenchResult& result);
/// All of it, every sample too: a JSON object.
std::string bench_json(const BenchFacts& facts, const std::vector<BenchResult>& results);

}  // namespace fedpdpo
