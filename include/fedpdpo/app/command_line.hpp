// The command line: subcommands, options with Boost.Program_options (one translation unit), config files, and error
// lines that name the nearest known option.
#pragma once

#include <filesystem>
#include <iosfwd>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

enum class Command { run, plan, partition, export_models, evaluate, inspect, bench, help, version };

struct BenchOptions {
  std::string shape = "smollm2-135m";  ///< a named shape with random weights, or empty with --model
  std::string tokens = "128/128/128";  ///< prompt/chosen/rejected
  std::vector<int> clients = {1};      ///< that a step trains; every number with every number of pairs
  std::vector<int> pairs = {1};        ///< of each client in a step
  int repeats = 5;
  int warmup = 2;              ///< steps before the first that is timed
  double most_seconds = 0;     ///< for the timed steps of a combination, 0: no limit
  std::filesystem::path json;  ///< where all figures go; empty: nowhere
  int ceiling = 0;             ///< side of the large product that a step is held against; 0: what fits the device
  bool profile = false;        ///< a step more, with every operation timed
  bool count = false;          ///< what a step moves and multiplies, instead of measuring one
  bool cohort_given = false, micro_rows_given = false;  ///< by the user; else a device takes what fits
};

/// Of `export` and `eval`; their --model, --data, --out and execution options are RunOptions'.
struct SavedModelOptions {
  std::filesystem::path checkpoint;              ///< a run's folder of checkpoints, or one checkpoint in it
  std::string client;                            ///< "all", "shared" or a number; empty: not given
  bool merge = false;                            ///< export: a whole model
  std::filesystem::path adapter;                 ///< eval: a PEFT folder
  std::filesystem::path reference;               ///< eval: model folder; empty: --model
  Split split = Split::test;                     ///< eval
  std::filesystem::path json;                    ///< eval: where all figures go; empty: nowhere
  std::map<std::string, std::string> overrides;  ///< eval: loss and precision as given, which win over the model's own
};

struct CommandLine {
  Command command = Command::help;
  RunOptions run;
  SavedModelOptions saved;
  BenchOptions bench;
  std::vector<std::string> inspect_paths;
  std::string text;                   ///< the command line as it was given, quoted for a shell
  std::vector<std::string> warnings;  ///< of options that are accepted and have no effect, a line each
  std::string help;                   ///< what `help` prints: of the subcommand asked about, or in general
};

/// Parses argv[1..]. Order of precedence: command line, --config FILE (INI; section names are for the reader and do
/// not matter), the method's defaults, RunOptions' defaults. InputError for every mistake: unknown option or subcommand
/// (with the nearest known one), a value that does not parse or lies out of range (option, expected, found),
/// contradictions between options. What follows from other options is filled in: the number of clients, checkpoint_dir,
/// reference_cache, lambda = mu = 0 without a reward head, an empty bench.shape where bench has --model, and which of
/// --cohort and --micro-rows were given.
CommandLine parse_command_line(const std::vector<std::string>& arguments);

/// The candidate with the least edit distance (Damerau-Levenshtein), empty if none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace fedpdpo
