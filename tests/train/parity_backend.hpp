// The backend that whole training steps are compared with the CPU on.
#pragma once

#include <memory>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::test {

/// A CUDA device's; null where there is none, and the tests are skipped.
std::unique_ptr<Backend> make_parity_backend();

}  // namespace fedpdpo::test
