// Config files: INI with `key = value`, whose keys are the long option names. Sections are for the reader.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "command_line_parts.hpp"

namespace fedpdpo {
namespace {

constexpr std::string_view blanks = " \t\r";

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

std::string_view without_comment(std::string_view line) {
  const std::string_view text = trimmed(line);
  if (text.starts_with('#') || text.starts_with(';')) return {};
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') quoted = !quoted;
    if (text[i] == '#' && !quoted && blanks.find(text[i - 1]) != std::string_view::npos)
      return trimmed(text.substr(0, i));
  }
  return text;
}

// Words separated by blanks, or the whole text as one; quotes hold blanks together and are dropped.
std::vector<std::string> words(std::string_view text, bool separate, const Given& given) {
  std::vector<std::string> result;
  bool quoted = false, inside = false;
  for (const char c : text) {
    if (c == '"') {
      quoted = !quoted;
    } else if (separate && !quoted && blanks.find(c) != std::string_view::npos) {
      inside = false;
      continue;
    }
    if (!inside) result.emplace_back();
    inside = true;
    if (c != '"') result.back() += c;
  }
  if (quoted) throw given.error("a closing \"", text);
  return result;
}

}  // namespace

std::vector<Given> read_config(const std::filesystem::path& path) {
  std::ifstream stream(path);
  std::error_code ignored;
  if (!stream || std::filesystem::is_directory(path, ignored)) {
    throw InputError(path.string(), "--config", "a readable file",
                     std::filesystem::exists(path, ignored) ? "none" : "no such file");
  }
  std::vector<std::string> known = option_names(Command::run);
  std::erase(known, "config");
  std::vector<Given> result;
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    const std::string_view text = without_comment(line);
    const std::string place = fmt::format("{}:{}", path.string(), number);
    if (text.empty()) continue;
    if (text.front() == '[') {
      if (text.back() != ']') throw InputError(place, "", "[section]", text);
      continue;
    }
    const std::size_t equals = text.find('=');
    if (equals == std::string_view::npos) throw InputError(place, "", "key = value", text);
    Given given{std::string(trimmed(text.substr(0, equals))), {}, place};
    const OptionSpec* option = find_option(given.name);
    if (option == nullptr || !(accepts(Command::run, *option) || accepts(Command::bench, *option)) ||
        given.name == "config") {
      throw InputError(fmt::format("{}: unknown option{}", given.label(), option_suggestion(given.name, known)));
    }
    const bool several = option->arity == OptionSpec::Arity::several;
    given.values = words(trimmed(text.substr(equals + 1)), several, given);
    if (given.values.empty()) throw given.error(option->placeholder.empty() ? "on or off" : option->placeholder, "");
    const auto same = std::find_if(result.begin(), result.end(), [&](const Given& g) { return g.name == given.name; });
    if (same == result.end()) {
      result.push_back(std::move(given));
    } else if (several) {
      same->values.insert(same->values.end(), given.values.begin(), given.values.end());
    } else {
      throw InputError(fmt::format("{}: given twice, first at {}", given.label(), same->place));
    }
  }
  return result;
}

}  // namespace fedpdpo
