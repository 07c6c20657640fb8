// One line a message on standard error, handed over in one piece so that lines of several ranks do not mix.
#include "fedpdpo/core/log.hpp"

#include <fmt/format.h>

#include <atomic>
#include <cstdio>
#include <string>

namespace fedpdpo {
namespace {

std::atomic<int> log_rank = 0;

void print(std::string_view kind, std::string_view line) {
  const int rank = log_rank.load();
  std::string text = "fedpdpo: ";
  text += kind;
  if (rank != 0) text += fmt::format("[rank {}] ", rank);
  text += line;
  text += '\n';
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

void set_log_rank(int rank) { log_rank = rank; }

void log_info(std::string_view line) {
  if (log_rank.load() == 0) print("", line);
}

void log_warning(std::string_view line) { print("warning: ", line); }

void log_error(std::string_view line) { print("error: ", line); }

}  // namespace fedpdpo
