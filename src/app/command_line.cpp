// From argv to CommandLine: Boost.Program_options splits the arguments, the option table gives them their meaning.
#include "fedpdpo/app/command_line.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options/errors.hpp>
#include <boost/program_options/options_description.hpp>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/value_semantic.hpp>

#include "command_line_parts.hpp"
#include "fedpdpo/fed/reference.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace po = boost::program_options;

namespace fedpdpo {
namespace {

std::string shell_quoted(const std::string& word) {
  constexpr std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

const CommandName* find_command(std::string_view word) {
  for (const CommandName& command : command_names()) {
    if (command.name == word) return &command;
  }
  return nullptr;
}

const CommandName& require_command(const std::string& word) {
  if (const CommandName* found = find_command(word)) return *found;
  std::vector<std::string> names;
  for (const CommandName& command : command_names()) names.emplace_back(command.name);
  const std::string near = suggestion(word, names);
  throw InputError(
      fmt::format("{}: unknown subcommand{}", shell_quoted(word), near.empty() ? ", see `fedpdpo help`" : near));
}

[[noreturn]] void unknown_option(const std::string& word, Command command) {
  const std::string name = word.substr(std::min(word.find_first_not_of('-'), word.size()));
  const std::string bare = name.substr(0, name.find('='));
  throw InputError(fmt::format("--{}: unknown option of `{}`{}", bare,
                               command_names()[static_cast<std::size_t>(command)].name,
                               option_suggestion(bare, option_names(command), "--")));
}

// The arguments as name and values; positional ones have no name. Nothing is guessed from a prefix.
std::vector<po::option> split(Command command, const std::vector<std::string>& arguments) {
  po::options_description known;
  for (const OptionSpec& option : option_table()) {
    if (!accepts(command, option)) continue;
    if (option.arity == OptionSpec::Arity::none) {
      known.add_options()(option.name.c_str(), "");
    } else {
      auto* value = po::value<std::vector<std::string>>();
      if (option.arity == OptionSpec::Arity::several) value->multitoken();
      known.add_options()(option.name.c_str(), value, "");
    }
  }
  namespace style = po::command_line_style;
  try {
    return po::command_line_parser(arguments)
        .options(known)
        .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
        .run()
        .options;
  } catch (const po::unknown_option& error) {
    unknown_option(error.get_option_name(), command);
  } catch (const po::invalid_command_line_syntax& error) {
    const std::string name = error.get_option_name();
    const OptionSpec* option = find_option(name.substr(std::min(name.find_first_not_of('-'), name.size())));
    const bool needs_value = option != nullptr && option->arity != OptionSpec::Arity::none;
    throw InputError("", name, needs_value ? option->placeholder : "no value", needs_value ? "nothing" : "one");
  } catch (const po::error& error) {
    throw InputError(error.what());
  }
}

GivenByName given_on_command_line(CommandLine& line, const std::vector<std::string>& arguments) {
  GivenByName result;
  for (const po::option& option : split(line.command, arguments)) {
    if (option.string_key.empty()) {
      const std::string& word = option.value.front();
      if (word.size() > 1 && word.front() == '-') unknown_option(word, line.command);
      if (line.command != Command::inspect) throw InputError("", shell_quoted(word), "an option", "a bare word");
      line.inspect_paths.push_back(word);
      continue;
    }
    Given given{option.string_key, option.value, {}};
    if (find_option(given.name)->arity == OptionSpec::Arity::none) given.values = {"on"};
    const auto [same, is_new] = result.emplace(given.name, given);
    if (is_new) continue;
    if (find_option(given.name)->arity != OptionSpec::Arity::several) throw InputError(given.label() + ": given twice");
    same->second.values.insert(same->second.values.end(), given.values.begin(), given.values.end());
  }
  return result;
}

void add_config(GivenByName& given) {
  const auto config = given.find("config");
  if (config == given.end()) return;
  for (Given& option : read_config(config->second.value())) given.emplace(option.name, std::move(option));
}

void resolve(CommandLine& line, const GivenByName& given) {
  const auto set = [&](std::string_view name) {
    const auto entry = given.find(name);
    if (entry == given.end()) return;
    const OptionSpec& option = *find_option(name);
    for (const std::string& value : entry->second.values) {
      if (value.empty()) throw entry->second.error(option.placeholder, "");
    }
    option.set(line, entry->second);
  };
  set("method");
  const MethodInfo* method = find_method(line.run.method);
  check(method != nullptr, "the default method is registered");
  if (method->defaults) method->defaults(line.run);
  for (const OptionSpec& option : option_table()) {
    if (option.name != "method") set(option.name);
  }
  const bool clients_are_default =
      !given.contains("clients") && line.run.partition.num_clients == RunOptions{}.partition.num_clients;
  if (clients_are_default && line.run.data.size() > 1)
    line.run.partition.num_clients = static_cast<int>(line.run.data.size());
}

// Values that follow from others.
void derive(CommandLine& line) {
  RunOptions& run = line.run;
  if (!run.adapter.reward_head) run.loss.lambda = run.loss.mu = 0;
  if (run.checkpoint_dir.empty() && !run.out.empty()) {
    run.checkpoint_dir = run.out;
    if (run.checkpoint_dir.extension() == ".h5") run.checkpoint_dir.replace_extension();
    run.checkpoint_dir += ".ckpt";
  }
  if (run.reference_cache.empty()) run.reference_cache = default_reference_cache();
  if (line.command == Command::bench && !run.model.empty()) line.bench.shape.clear();
  if (line.command == Command::evaluate && line.saved.client.empty()) line.saved.client = "all";
  line.bench.cohort_given = line.run.cohort > 0;
  line.bench.micro_rows_given = line.run.micro_rows > 0;
}

bool asks_for_help(const std::string& word) { return word == "--help" || word == "-h"; }

}  // namespace

CommandLine parse_command_line(const std::vector<std::string>& arguments) {
  CommandLine line;
  line.text = "fedpdpo";
  for (const std::string& argument : arguments) line.text += " " + shell_quoted(argument);
  line.help = help_text();
  if (arguments.empty() || asks_for_help(arguments.front())) return line;
  if (arguments.front() == "--version") {
    line.command = Command::version;
  } else if (arguments.front().starts_with('-')) {
    throw InputError("", shell_quoted(arguments.front()), "a subcommand first, see `fedpdpo help`", "an option");
  } else {
    line.command = require_command(arguments.front()).command;
  }

  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (line.command == Command::version) return line;
  if (line.command == Command::help) {
    if (!rest.empty()) line.help = help_text(require_command(rest.front()).command);
    return line;
  }
  if (std::any_of(rest.begin(), rest.end(), asks_for_help)) {
    line.help = help_text(line.command);
    line.command = Command::help;
    return line;
  }

  GivenByName given = given_on_command_line(line, rest);
  if (line.command == Command::inspect) {
    if (line.inspect_paths.empty()) throw InputError("", "inspect", "PATH...", "nothing");
    return line;
  }
  add_config(given);
  resolve(line, given);
  check_consistency(line, given);
  if (line.command == Command::evaluate) line.saved.overrides = given_overrides(given);
  if (line.command != Command::evaluate && line.command != Command::export_models) line.warnings = advice(line, given);
  derive(line);
  return line;
}

}  // namespace fedpdpo
