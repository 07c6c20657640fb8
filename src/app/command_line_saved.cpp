// Options of `export` and `eval`, and options told by a checkpoint.
#include <fmt/format.h>

#include "command_line_parts.hpp"

namespace fedpdpo {

std::string placeholder_of(const OptionSpec& option, Command command) {
  return command == Command::export_models && option.name == "out" ? "DIR" : option.placeholder;
}

void apply_options(CommandLine& line, const std::map<std::string, std::string>& texts, const std::string& place) {
  for (const auto& [name, text] : texts) {
    if (text.empty()) continue;
    const OptionSpec* option = find_option(name);
    if (!option || !accepts(Command::run, *option))
      throw InputError(place, name, "an option of this program", "one that it does not know");
    option->set(line, Given{name, {text}, place});
  }
}

std::map<std::string, std::string> given_overrides(const GivenByName& given) {
  std::map<std::string, std::string> texts;
  for (const auto& [name, option] : given)
    if (name == "precision" || find_option(name)->section == Section::loss) texts[name] = option.value();
  return texts;
}

void check_saved_models(const CommandLine& line, const GivenByName& given) {
  const auto require = [&](std::string_view name) {
    if (given.contains(name)) return;
    const OptionSpec& option = *find_option(name);
    throw InputError("", "--" + option.name,
                     fmt::format("{} (`{}` needs it)", placeholder_of(option, line.command),
                                 command_names()[static_cast<std::size_t>(line.command)].name),
                     "nothing");
  };
  if (line.command == Command::export_models) {
    for (const char* name : {"checkpoint", "client", "out"}) require(name);
    return;
  }
  require("data");
  if (!given.contains("checkpoint")) require("model");
  if (given.contains("checkpoint") && given.contains("adapter"))
    throw InputError("--adapter: needs no --checkpoint, found --checkpoint " + line.saved.checkpoint.string());
  if (given.contains("client") && !given.contains("checkpoint"))
    throw InputError("--client: needs --checkpoint, found none");
}

}  // namespace fedpdpo
