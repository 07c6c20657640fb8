// What a run finds where it is going to write.
#pragma once

#include <string>

#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

/// InputError where OUT or checkpoints are there that the run has not been told to replace (--overwrite) or to go on
/// from
/// (--resume auto), or where OUT cannot be written. On rank 0.
void require_free_output(const RunOptions& options);
/// With --resume auto: true where OUT is this very run, complete; InputError, naming what differs, where it is another
/// one. `model_hash` and `data_hash` name the input as /environment does. On rank 0.
bool is_complete(const RunOptions& options, const std::string& model_hash, const std::string& data_hash);

}  // namespace fedpdpo
