// A checkpoint with the run's options and base model, as `export` and `eval` read it.
#pragma once

#include <filesystem>

#include "commands.hpp"
#include "fedpdpo/fed/saved_federation.hpp"

namespace fedpdpo {

/// Collective. The checkpoint in this folder itself, or the newest in a run's folder of them; of clients' models the
/// newest at the end of a round. InputError where there is none, saying why; a line tells which one was taken.
CheckpointReader open_checkpoint(const Communicator& world, const SavedModelOptions& saved);
/// The options that the run was given. InputError names the fact that does not read.
RunOptions run_options_of(const CheckpointReader& reader);
/// The folder that the run read its model from, or `given`, if it is.
std::filesystem::path base_of(const CheckpointReader& reader, const std::filesystem::path& given);
/// InputError unless this is the very model that the run began with.
void require_base(const CheckpointReader& reader, const ModelFolder& base, const std::string& content_hash);

/// Numbers of the clients that `saved.client` means; empty for "shared". InputError for one that the federation lacks,
/// or whose model, or the shared one, cannot be had.
std::vector<int> selected_clients(const SavedFederation& federation, const SavedModelOptions& saved);

}  // namespace fedpdpo
