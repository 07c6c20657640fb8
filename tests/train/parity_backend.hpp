// The backend that whole training steps are compared with the CPU on.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::test {

/// A CUDA device's; null where there is none, and the tests are skipped.
std::unique_ptr<Backend> make_parity_backend();
/// Graphs that it has launched so far, where that can be known.
std::optional<std::size_t> graph_launches();

}  // namespace fedpdpo::test
