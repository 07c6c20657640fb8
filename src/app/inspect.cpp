// fedpdpo inspect: what a file or folder of ours or HuggingFace's holds, in a few lines.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/hdf5.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "fedpdpo/model/private_modules.hpp"
#include "fedpdpo/record/checkpoint.hpp"
#include "inspect_saved.hpp"

namespace fedpdpo {
namespace {

void inspect_model(const std::filesystem::path& path) {
  const ModelFolder model(path);
  const ModelConfig& c = model.config();
  fmt::print("{}: model, family {}\n", path.string(), c.family);
  fmt::print(
      "  {} layers, hidden {}, heads {} on {} key-value heads of {}, intermediate {}, vocabulary {}, positions {}\n",
      c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size, c.vocab_size,
      c.max_positions);
  if (c.attention_window > 0)
    fmt::print("  sliding window of {} tokens: pairs have to fit into it\n", c.attention_window);
  fmt::print("  {:.2f} M parameters in layers, {:.2f} M in the embedding, head {}\n",
             static_cast<double>(c.layer_parameters()) / 1e6, static_cast<double>(c.vocab_size * c.hidden_size) / 1e6,
             c.tied_head ? "tied" : "its own");
  fmt::print("  tokenizer sha256 {}\n  content sha256 {}\n", model.tokenizer_sha256(), model.content_hash());
}

void inspect_pairs(const std::filesystem::path& path) {
  const PairFile pairs = read_pair_file(path);
  std::array<std::size_t, 3> splits{};
  std::vector<std::size_t> labels(pairs.label_names.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    ++splits[static_cast<std::size_t>(pairs.split[i])];
    ++labels[static_cast<std::size_t>(pairs.label[i])];
  }
  fmt::print("{}: preference pairs of domain {}{}\n", path.string(), pairs.domain,
             pairs.synthetic ? " (synthetic)" : "");
  fmt::print(
      "  {} pairs: train {}, validation {}, test {}; at most {} tokens; {} prompt, {} chosen, {} rejected tokens\n",
      pairs.size(), splits[0], splits[1], splits[2], pairs.max_length, pairs.prompt.tokens.size(),
      pairs.chosen.tokens.size(), pairs.rejected.tokens.size());
  fmt::print("  tokenizer {} ({}), vocabulary {}; source {}, licence {}\n", pairs.tokenizer_name,
             pairs.tokenizer_sha256.substr(0, 12), pairs.vocab_size, pairs.source, pairs.license);
  for (std::size_t l = 0; l < labels.size(); ++l) fmt::print("  {:>7}  {}\n", labels[l], pairs.label_names[l]);
}

void inspect_run(const std::filesystem::path& path, const Hdf5Reader& file) {
  const auto config = [&](const char* name) { return file.attribute<std::string>("/config", name).value_or("?"); };
  fmt::print("{}: run, {}\n", path.string(), file.attribute<std::string>("/", "status").value_or("?"));
  fmt::print("  method {}, {} clients, {} rounds, partition {} alpha {}, flipped {}, seed {}\n", config("method"),
             config("clients"), config("rounds"), config("partition"), config("alpha"), config("flip-clients"),
             config("seed"));
  fmt::print("  {}\n", config("command_line"));
  // All that is a function of options and input: equal for runs that computed the same, to the last bit.
  constexpr std::string_view results[] = {"/rounds", "/clients", "/final"};
  fmt::print("  results sha256 {}\n", file.content_hash(results));
  for (const char* split : split_names) {
    const std::string name = std::string("/rounds/") + split + "/after/accuracy";
    if (!file.exists(name)) continue;
    const std::vector<double> accuracy = file.read<double>(name);
    std::size_t last = accuracy.size();
    while (last > 0 && std::isnan(accuracy[last - 1])) --last;
    if (last > 0)
      fmt::print("  {} accuracy {:.4f} at the start, {:.4f} after round {}\n", split, accuracy[0], accuracy[last - 1],
                 last - 1);
  }
}

void inspect_evaluation(const std::filesystem::path& path, const Hdf5Reader& file) {
  const std::vector<std::string> names = file.read_strings("/models/names");
  const std::vector<double> accuracy = file.read<double>("/files/accuracy");
  const std::vector<std::string> domains = file.read_strings("/pairs/domain_names");
  if (accuracy.size() != names.size() * domains.size())
    throw InputError(path.string(), "/files/accuracy", fmt::format("{} by {}", names.size(), domains.size()),
                     fmt::format("{} numbers", accuracy.size()));
  fmt::print("{}: evaluation of {} models on {} pairs of split {}\n", path.string(), names.size(),
             file.shape("/pairs/pair")[0], file.attribute<std::string>("/config", "split").value_or("?"));
  fmt::print("  {}\n", file.attribute<std::string>("/config", "command_line").value_or("?"));
  for (std::size_t m = 0; m < names.size(); ++m)
    for (std::size_t f = 0; f < domains.size(); ++f)
      fmt::print("  {} on {}: accuracy {:.4f}\n", names[m], domains[f], accuracy[m * domains.size() + f]);
}

/// Folders that `export --client all` fills, one a model.
std::vector<std::filesystem::path> exported_folders(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string name = entry.path().filename().string();
    const bool is_a_models = name.starts_with("client-") || name.starts_with("group-");
    if (is_a_models && std::filesystem::exists(entry.path() / modules_config_name)) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

void inspect_folder(const Communicator& alone, const std::filesystem::path& path) {
  if (std::filesystem::exists(path / "manifest.json")) return inspect_checkpoint(path);
  if (std::filesystem::exists(path / "config.json")) {
    inspect_model(path);
    return inspect_origin(path);
  }
  if (std::filesystem::exists(path / adapter_config_name)) return inspect_adapter(path);
  if (!checkpoint_names(path).empty()) return inspect_checkpoints(alone, path);
  const std::vector<std::filesystem::path> exported = exported_folders(path);
  if (exported.empty())
    throw InputError(path.string(), "",
                     "a model folder (config.json), a checkpoint (manifest.json), a folder of checkpoints or an "
                     "adapter (adapter_config.json)",
                     "none of them");
  fmt::print("{}: folder of {} exported model{}\n", path.string(), exported.size(), exported.size() == 1 ? "" : "s");
  for (const std::filesystem::path& folder : exported) inspect_folder(alone, folder);
}

void inspect(const Communicator& alone, const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw InputError(path.string(), "", "a file or folder", "nothing of that name");
  if (std::filesystem::is_directory(path)) return inspect_folder(alone, path);
  require_sound_hdf5(path, [&] {
    const Hdf5Reader tasted(path);
    if (tasted.attribute<std::string>("/", "format") == "fedpdpo-pairs") read_pair_file(path);
  });
  const Hdf5Reader file(path);
  const std::string format = file.attribute<std::string>("/", "format").value_or("none");
  if (format == "fedpdpo-pairs") return inspect_pairs(path);
  if (format == "fedpdpo-run") return inspect_run(path, file);
  if (format == "fedpdpo-eval") return inspect_evaluation(path, file);
  throw InputError(path.string(), "format", "fedpdpo-pairs, fedpdpo-run or fedpdpo-eval", format);
}

}  // namespace

int inspect_command(const Communicator& world, const CommandLine& line) {
  const std::optional<Communicator> alone = world.split(world.rank() == 0 ? std::optional(0) : std::nullopt);
  std::int64_t code = 0;
  if (alone) {
    for (const std::string& path : line.inspect_paths) {
      try {
        inspect(*alone, path);
      } catch (const InputError& error) {
        std::fflush(stdout);
        log_error(error.what());
        code = 2;
      }
    }
  }
  world.max(std::span(&code, 1));
  return static_cast<int>(code);
}

}  // namespace fedpdpo
