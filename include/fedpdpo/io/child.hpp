// Doing something first in a child process, for libraries that do not survive every input.
#pragma once

#include <functional>

namespace fedpdpo {

/// Runs `work` in a forked child with bounded memory and time, its output closed; true if the child ended by itself (an
/// exception counts as such: the caller will meet it again), false if it crashed or ran out of either.
bool survives_in_child(const std::function<void()>& work);

}  // namespace fedpdpo
