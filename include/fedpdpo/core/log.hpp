// Messages for people: one line each on standard error, from rank 0 unless said otherwise.
#pragma once

#include <string_view>

namespace fedpdpo {

/// Sets the rank whose messages carry no prefix and the only one that prints info().
void set_log_rank(int rank);

/// Facts of normal operation; printed by rank 0 only.
void log_info(std::string_view line);
/// Something the user should know; printed by every rank that says it, with its number.
void log_warning(std::string_view line);
/// The last words before an exit.
void log_error(std::string_view line);

}  // namespace fedpdpo
