// What `inspect` tells of trained models on disk: checkpoints, folders of them, and what `export` writes.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo {

/// One checkpoint: a folder with manifest.json. Only the manifest is read.
void inspect_checkpoint(const std::filesystem::path& path);
/// A folder of checkpoints: each by name, whole or not (all files are hashed), and the newest whole one. `alone` is a
/// communicator of one rank. InputError where none is whole.
void inspect_checkpoints(const Communicator& alone, const std::filesystem::path& path);

/// An adapter in PEFT's layout, whoever wrote it.
void inspect_adapter(const std::filesystem::path& path);
/// What fedpdpo_modules.json says, where there is one: model, base, private modules, run.
void inspect_origin(const std::filesystem::path& path);

}  // namespace fedpdpo
