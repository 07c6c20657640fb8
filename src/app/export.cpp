// fedpdpo export: models of a checkpoint as folders that PEFT or transformers load. One process does the work.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/model/merged_model.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "fedpdpo/model/private_modules.hpp"
#include "model_card.hpp"
#include "output_folder.hpp"
#include "saved_models.hpp"

namespace fedpdpo {
namespace {

/// Never without a word: what the folders' weights or adapters lack.
void tell_what_is_beside(const std::filesystem::path& folder, const AdapterOptions& modules, bool merge) {
  if (modules.bottleneck > 0)
    log_warning(fmt::format(
        "{}: the bottleneck {}: it is in {}, and load_client() of analysis/load_client.py attaches it", folder.string(),
        merge ? "is not linear and cannot be merged" : "is not PEFT's", modules_weights_name));
  if (modules.reward_head) log_info(fmt::format("{}: the reward head is in {}", folder.string(), modules_weights_name));
}

void require_expressible(const ExportedModel& exported) {
  if (!exported.merged && !exported.model.residual.empty())
    throw InputError(
        fmt::format("{}: {} has added to the frozen weights, so that no adapter is the model: needs "
                    "--merge, found none",
                    exported.federation.reader().folder().string(), exported.federation.options().method));
}

void write_model(const std::filesystem::path& folder, const ModelFolder& base, const ExportedModel& exported) {
  require_expressible(exported);
  std::filesystem::create_directories(folder);
  if (exported.merged) {
    write_merged_model(folder, base, exported.model);
  } else {
    write_peft_adapter(folder, base.config(), exported.model, exported.base.string());
  }
  write_private_modules(folder, base.config(), exported.model, provenance(exported));
  write_file_atomically(folder / "README.md", model_card(exported));
}

int write_all(const CheckpointReader& reader, const CommandLine& line) {
  const RunOptions options = run_options_of(reader);
  const ModelFolder base(base_of(reader, line.run.model));
  require_base(reader, base, base.content_hash());
  const SavedFederation federation(reader, options, base.config());
  const std::vector<int> clients = selected_clients(federation, line.saved);
  const std::filesystem::path base_path = std::filesystem::absolute(base.path()).lexically_normal();
  OutputFolder out(line.run.out, line.run.overwrite ? Existing::replace : Existing::keep);
  AdapterOptions modules;
  const auto write = [&](const std::string& below, const TrainedModel& model, int client, int group) {
    write_model(out.work() / below, base, {federation, model, client, group, line.saved.merge, base_path});
    modules = model.options;
  };
  const bool several = line.saved.client == "all";
  for (const int client : clients)
    write(several ? fmt::format("client-{:05}", client) : "", federation.client_model(client), client,
          federation.group_of(client));
  const int groups = clients.empty() && line.saved.client == "shared" ? federation.num_groups() : 0;
  for (int group = 0; group < groups; ++group)
    write(groups > 1 ? fmt::format("group-{:05}", group) : "", federation.shared_model(group), -1, group);
  out.commit();
  tell_what_is_beside(line.run.out, modules, line.saved.merge);
  const std::size_t count = clients.size() + static_cast<std::size_t>(groups);
  log_info(fmt::format("wrote {} model{} after round {} to {}", count, count == 1 ? "" : "s", federation.rounds_done(),
                       line.run.out.string()));
  return 0;
}

}  // namespace

int export_command(const Communicator& world, const CommandLine& line) {
  const CheckpointReader reader = open_checkpoint(world, line.saved);
  return on_all_ranks(world, [&] { return world.rank() == 0 ? write_all(reader, line) : 0; });
}

}  // namespace fedpdpo
