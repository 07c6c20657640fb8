// Private to the command line: what the user gave, the table of options, and the steps from the one to the other.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fedpdpo/app/command_line.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/option_names.hpp"

namespace fedpdpo {

/// One option as the user gave it.
struct Given {
  std::string name;
  std::vector<std::string> values;
  std::string place;  ///< "FILE:LINE" of a config file; empty on the command line

  /// How an error line names it: "--alpha", or "FILE:LINE: alpha".
  std::string label() const { return place.empty() ? "--" + name : place + ": " + name; }
  const std::string& value() const { return values.front(); }
  InputError error(std::string_view expected, std::string_view found) const;
};

// Values. Each throws InputError with the option's label, what is expected and what was found.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_included = true, high_included = true;
};
inline constexpr Range any_positive{.low = 0, .low_included = false};
inline constexpr Range not_negative{.low = 0};
inline constexpr Range share{.low = 0, .high = 1};
inline constexpr Range below_one{.low = 0, .high = 1, .high_included = false};
inline constexpr Range open_share{.low = 0, .high = 1, .low_included = false, .high_included = false};
inline constexpr Range positive_share{.low = 0, .high = 1, .low_included = false};
inline constexpr Range below_half{.low = 0, .high = 0.5, .high_included = false};
double real(const Given& given, const Range& range);
int integer(const Given& given, int low, int high = std::numeric_limits<int>::max());
/// 0 for auto, else from 1.
int integer_or_auto(const Given& given);
std::uint64_t unsigned_integer(const Given& given, std::uint64_t low = 0);
/// The position of the given word in `names`.
std::size_t position(const Given& given, const std::vector<std::string>& names);
template <class Enum, std::size_t N>
Enum choice(const Given& given, const std::array<NamedValue<Enum>, N>& names) {
  std::vector<std::string> words;
  for (const auto& entry : names) words.emplace_back(entry.name);
  return names[position(given, words)].value;
}
/// on, yes, true: true; off, no, false: false.
bool on_or_off(const Given& given);
/// A comma-separated list without blanks; no item is empty or given twice.
std::vector<std::string> list(const Given& given);

/// " (did you mean PREFIXcandidate?)", or nothing.
std::string suggestion(std::string_view word, const std::vector<std::string>& candidates, std::string_view prefix = "");
/// The same for a word that is no option; other programs' names for options are known.
std::string option_suggestion(const std::string& word, const std::vector<std::string>& options,
                              std::string_view prefix = "");
/// Throws where the name is that of a text file, or of several files separated by commas.
void require_pair_file_name(const Given& given, const std::filesystem::path& file);

enum class Section { input, saved, federation, modules, loss, optimizer, execution, output, bench };

struct OptionSpec {
  enum class Arity { one, several, none };

  std::string name, placeholder, help;
  Section section = Section::input;
  void (*set)(CommandLine&, const Given&) = nullptr;
  Arity arity = Arity::one;
  std::string fallback = {};  ///< how help words the default, where the default's text alone would not do
};

const std::vector<OptionSpec>& option_table();
const OptionSpec* find_option(std::string_view name);
/// Whether the subcommand has that option.
bool accepts(Command command, const OptionSpec& option);
std::vector<std::string> option_names(Command command);
std::vector<std::string> method_names();

struct CommandName {
  Command command;
  std::string_view name, summary;
};
const std::vector<CommandName>& command_names();

/// The options of a config file: `key = value` lines, [sections] and comments (# or ; at the start of a line, # after a
/// blank). Several data files are separated by blanks or given by repeated keys; "..." holds blanks together.
std::vector<Given> read_config(const std::filesystem::path& path);

using GivenByName = std::map<std::string, Given, std::less<>>;
/// Sets options from texts by name, as describe() makes them; empty ones keep their defaults. `place` is where they
/// come from, for error lines.
void apply_options(CommandLine& line, const std::map<std::string, std::string>& texts, const std::string& place);
/// What `export` and `eval` need and what excludes what; and eval's overrides.
void check_saved_models(const CommandLine& line, const GivenByName& given);
std::map<std::string, std::string> given_overrides(const GivenByName& given);
/// How help and errors show the option's value in this subcommand.
std::string placeholder_of(const OptionSpec& option, Command command);
/// Throws where options exclude one another, and where `command` misses one that it needs.
void check_consistency(const CommandLine& line, const GivenByName& given);
/// What was given and is accepted, but has no effect: a line each.
std::vector<std::string> advice(const CommandLine& line, const GivenByName& given);
/// Whether there is anything that steps of --refit would train.
bool refit_trains(const RunOptions& run);

std::string help_text();
std::string help_text(Command command);

}  // namespace fedpdpo
