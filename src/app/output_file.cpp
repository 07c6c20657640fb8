// Runs and checkpoints that are there before a run.
#include "output_file.hpp"

#include <map>
#include <optional>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "fedpdpo/record/checkpoint.hpp"

namespace fedpdpo {

void require_output_file(const RunOptions& options) {
  if (std::filesystem::exists(options.out) && !options.overwrite)
    throw InputError(options.out.string(), "--out", "a file that does not exist (or --overwrite)", "an existing one");
  require_writable(options.out, "--out");
}

void require_free_output(const RunOptions& options) {
  if (options.resume == Resume::automatic) return require_writable(options.out, "--out");
  require_output_file(options);
  const std::filesystem::path directory = checkpoint_directory(options);
  const std::vector<std::string> names = checkpoint_names(directory);
  if (!names.empty() && !options.overwrite)
    throw InputError(directory.string(), "",
                     "no checkpoints of an earlier run (--resume auto goes on from them, --overwrite removes them)",
                     names.back());
}

bool is_complete(const RunOptions& options, const std::string& model_hash, const std::string& data_hash) {
  if (options.resume != Resume::automatic || options.overwrite || !std::filesystem::exists(options.out)) return false;
  const auto compare = [&] {
    const Hdf5Reader file(options.out);
    const auto require = [&](const std::string& field, const std::optional<std::string>& theirs,
                             const std::string& wanted) {
      if (theirs != wanted)
        throw InputError(options.out.string(), field, theirs.value_or("none") + " as it was made with (or --overwrite)",
                         wanted);
    };
    require("format", file.attribute<std::string>("/", "format"), "fedpdpo-run");
    require("status", file.attribute<std::string>("/", "status"), "complete");
    for (const auto& [name, value] : describe(options))
      if (!is_execution_option(name)) require("--" + name, file.attribute<std::string>("/config", name), value);
    require("--model", file.attribute<std::string>("/environment", "model_sha256"), model_hash);
    require("--data", file.attribute<std::string>("/environment", "data_sha256"), data_hash);
  };
  require_sound_hdf5(options.out, compare);
  compare();
  return true;
}

}  // namespace fedpdpo
