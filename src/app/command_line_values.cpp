// Option values from text: numbers in ranges, words of a choice, lists; and the nearest known word for a misspelt one.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "command_line_parts.hpp"

namespace fedpdpo {
namespace {

std::string expected_number(const Range& range) {
  const bool has_low = std::isfinite(range.low), has_high = std::isfinite(range.high);
  if (has_low && has_high) {
    return fmt::format("a number in {}{}, {}{}", range.low_included ? '[' : '(', range.low, range.high,
                       range.high_included ? ']' : ')');
  }
  if (has_low) return fmt::format("a number {} {}", range.low_included ? ">=" : ">", range.low);
  return "a number";
}

template <class Number>
bool parse_whole(const std::string& text, Number& value) {
  const char* end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data(), end, value);
  return failure == std::errc{} && stop == end;
}

// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost 1 each.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

std::string enumeration(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
    text += names[i];
  }
  return text;
}

}  // namespace

InputError Given::error(std::string_view expected, std::string_view found) const {
  return InputError("", label(), expected, found.empty() ? "nothing" : found);
}

double real(const Given& given, const Range& range) {
  double value = 0;
  const bool ok = parse_whole(given.value(), value) && std::isfinite(value) &&
                  (range.low_included ? value >= range.low : value > range.low) &&
                  (range.high_included ? value <= range.high : value < range.high);
  if (!ok) throw given.error(expected_number(range), given.value());
  return value;
}

int integer(const Given& given, int low, int high) {
  int value = 0;
  if (!parse_whole(given.value(), value) || value < low || value > high) {
    const std::string expected = high == std::numeric_limits<int>::max()
                                     ? fmt::format("an integer >= {}", low)
                                     : fmt::format("an integer in {} to {}", low, high);
    throw given.error(expected, given.value());
  }
  return value;
}

int integer_or_auto(const Given& given) {
  int value = 0;
  if (given.value() == "auto") return 0;
  if (!parse_whole(given.value(), value) || value < 1) throw given.error("auto or an integer >= 1", given.value());
  return value;
}

std::uint64_t unsigned_integer(const Given& given, std::uint64_t low) {
  std::uint64_t value = 0;
  if (!parse_whole(given.value(), value) || value < low) {
    throw given.error(fmt::format("an integer >= {}", low), given.value());
  }
  return value;
}

std::size_t position(const Given& given, const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), given.value());
  if (found == names.end()) throw given.error(enumeration(names), given.value() + suggestion(given.value(), names));
  return static_cast<std::size_t>(found - names.begin());
}

bool on_or_off(const Given& given) {
  const std::string& text = given.value();
  if (text == "on" || text == "yes" || text == "true") return true;
  if (text == "off" || text == "no" || text == "false") return false;
  throw given.error("on or off", text);
}

std::vector<std::string> list(const Given& given) {
  std::vector<std::string> items(1);
  for (const char c : given.value()) {
    if (c == ',') {
      items.emplace_back();
    } else if (c != ' ' && c != '\t') {
      items.back() += c;
    }
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (items[i].empty()) throw given.error("a comma-separated list without empty items", given.value());
    if (std::find(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(i), items[i]) !=
        items.begin() + static_cast<std::ptrdiff_t>(i)) {
      throw given.error("each item once", fmt::format("{} twice", items[i]));
    }
  }
  return items;
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::numeric_limits<std::size_t>::max();
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    const std::size_t most = std::max<std::size_t>(1, std::max(word.size(), candidate.size()) / 3);
    if (distance <= most && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  if (!best.empty() || word.size() < 2) return best;
  for (const std::string& candidate : candidates) {
    if (candidate.starts_with(word) || (candidate.size() >= 4 && word.starts_with(candidate))) return candidate;
  }
  return {};
}

std::string suggestion(std::string_view word, const std::vector<std::string>& candidates, std::string_view prefix) {
  const std::string near = nearest(word, candidates);
  return near.empty() ? "" : fmt::format(" (did you mean {}{}?)", prefix, near);
}

}  // namespace fedpdpo
