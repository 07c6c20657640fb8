// The lines of errors: input errors for people, contract violations for ourselves.
#include "fedpdpo/core/error.hpp"

#include <fmt/format.h>

namespace fedpdpo {
namespace {

// What is quoted comes from files that may hold anything: keep the line one line, and short.
constexpr std::size_t max_quoted = 300;

std::string quoted(std::string_view text) {
  std::size_t length = text.size();
  if (length > max_quoted) {
    length = max_quoted;
    while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0u) == 0x80u) --length;  // whole UTF-8 only
  }
  std::string line;
  line.reserve(length + 4);
  for (const char c : text.substr(0, length)) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '\n') {
      line += "\\n";
    } else if (code < 0x20 || code == 0x7F) {
      line += fmt::format("\\x{:02x}", code);
    } else {
      line += c;
    }
  }
  if (length < text.size()) line += "...";
  return line;
}

std::string input_line(std::string_view file, std::string_view field, std::string_view expected,
                       std::string_view found) {
  std::string line;
  const auto part = [&line](std::string_view separator, std::string_view label, std::string_view text) {
    if (text.empty()) return;
    if (!line.empty()) line += separator;
    line += label;
    line += quoted(text);
  };
  part("", "", file);
  part(": ", "", field);
  part(": ", "expected ", expected);
  part(expected.empty() ? ": " : ", ", "found ", found);
  return line;
}

}  // namespace

InputError::InputError(std::string_view file, std::string_view field, std::string_view expected, std::string_view found)
    : std::runtime_error(input_line(file, field, expected, found)) {}

void contract_violation(std::string_view condition, std::string_view message, std::source_location where) {
  throw std::logic_error(fmt::format("{}:{}: {}: {} failed: {}", where.file_name(), where.line(), where.function_name(),
                                     condition, message));
}

}  // namespace fedpdpo
