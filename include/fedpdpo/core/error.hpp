// Errors. InputError is the user's to mend (exit code 2, one line: file, field, expected, found);
// anything else that is thrown is ours (exit code 1). No header here includes fmt: .cu files reach it.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fedpdpo {

/// Bad usage or bad input. what() is one line that names what to mend.
class InputError : public std::runtime_error {
 public:
  explicit InputError(const std::string& line) : std::runtime_error(line) {}

  /// "FILE: FIELD: expected EXPECTED, found FOUND"; an empty part is left out.
  InputError(std::string_view file, std::string_view field, std::string_view expected, std::string_view found);
};

/// The run was checkpointed on a signal and wants to be started again (exit code 75).
class RequeueRequest : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void contract_violation(std::string_view condition, std::string_view message, std::source_location where);

/// Checks a contract between parts of the program; its failure is a bug of ours, never bad input.
inline void check(bool condition, std::string_view message,
                  std::source_location where = std::source_location::current()) {
  if (!condition) [[unlikely]]
    contract_violation("check", message, where);
}

}  // namespace fedpdpo
