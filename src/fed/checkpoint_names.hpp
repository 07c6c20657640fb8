// Names of a federation's files in a checkpoint.
#pragma once

#include <fmt/format.h>

#include <string>

namespace fedpdpo {

inline std::string client_file(int client) { return fmt::format("client-{:05}", client); }
inline std::string group_file(int group) { return fmt::format("group-{:05}", group); }

}  // namespace fedpdpo
