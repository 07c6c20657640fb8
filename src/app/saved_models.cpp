// Opening a checkpoint for those who are not a run.
#include "saved_models.hpp"

#include <fmt/format.h>

#include "command_line_parts.hpp"
#include "fedpdpo/core/log.hpp"

namespace fedpdpo {
namespace {

bool is_at_end(const CheckpointReader::Facts& facts) {
  const auto moment = facts.find("moment");
  if (moment != facts.end() && moment->second == moment_between_rounds) return true;
  log_info("a newer checkpoint, of a stop within a round, is passed over: the clients' models in it are half done");
  return false;
}

}  // namespace

CheckpointReader open_checkpoint(const Communicator& world, const SavedModelOptions& saved) {
  const std::filesystem::path& path = saved.checkpoint;
  on_all_ranks(world, [&] {
    if (!std::filesystem::is_directory(path))
      throw InputError(path.string(), "--checkpoint", "a folder of checkpoints, or one in it", "no such folder");
    return 0;
  });
  if (std::filesystem::exists(path / "manifest.json")) return CheckpointReader::at(world, path);
  const bool clients = saved.client != "shared";
  auto found = CheckpointReader::find(world, path, clients ? is_at_end : nullptr);
  if (!found && clients) {
    if (const auto other = CheckpointReader::find(world, path))
      throw InputError(path.string(), "--checkpoint", "a checkpoint at the end of a round",
                       fmt::format("only that of a stop within round {}: resume the run to its end", other->round()));
  }
  if (!found)
    throw InputError(path.string(), "--checkpoint", "a whole checkpoint (runs with --checkpoint-every leave them)",
                     "none");
  log_info("reading " + found->folder().string());
  return *found;
}

RunOptions run_options_of(const CheckpointReader& reader) {
  constexpr std::string_view prefix = "option.";
  std::map<std::string, std::string> texts;
  for (const auto& [name, text] : reader.facts())
    if (name.starts_with(prefix)) texts[name.substr(prefix.size())] = text;
  CommandLine line;
  line.command = Command::run;
  apply_options(line, texts, reader.manifest().string());
  return line.run;
}

std::filesystem::path base_of(const CheckpointReader& reader, const std::filesystem::path& given) {
  return given.empty() ? std::filesystem::path(reader.fact("path.model")) : given;
}

void require_base(const CheckpointReader& reader, const ModelFolder& base, const std::string& content_hash) {
  const std::string& expected = reader.fact("sha256.model");
  if (content_hash != expected)
    throw InputError(base.path().string(), "--model", "the model of the run, content sha256 " + expected, content_hash);
}

std::vector<int> selected_clients(const SavedFederation& federation, const SavedModelOptions& saved) {
  const std::string place = federation.reader().folder().string();
  std::vector<int> clients;
  const auto refuse = [&](const std::string& reason) {
    if (!reason.empty()) throw InputError(fmt::format("{}: --client {}: {}", place, saved.client, reason));
  };
  if (saved.client == "shared") {
    refuse(federation.refuses_shared());
    return clients;
  }
  if (saved.client == "all") {
    // New clients have no model, and the others have.
    for (int client = 0; client < federation.num_clients(); ++client)
      if (federation.group_of(client) >= 0) clients.push_back(client);
    if (!clients.empty()) refuse(federation.refuses_client(clients.front()));
    return clients;
  }
  const int client = std::stoi(saved.client);
  if (client >= federation.num_clients())
    throw InputError(place, "--client", fmt::format("0 to {}, all or shared", federation.num_clients() - 1),
                     saved.client);
  refuse(federation.refuses_client(client));
  return {client};
}

}  // namespace fedpdpo
