// What options must be there and which exclude one another. Only what the user gave counts as a contradiction: the
// defaults of a method give way.
#include <fmt/format.h>

#include <array>

#include "command_line_parts.hpp"

namespace fedpdpo {
namespace {

class Checker {
 public:
  Checker(const CommandLine& line, const GivenByName& given) : line_(line), run_(line.run), given_(given) {}

  void required() const {
    const bool needs_data =
        line_.command == Command::run || line_.command == Command::plan || line_.command == Command::partition;
    const bool needs_model = line_.command == Command::run || line_.command == Command::plan;
    if (needs_model && run_.model.empty()) missing("model");
    if (needs_data && run_.data.empty()) missing("data");
    if (line_.command == Command::run && run_.out.empty()) missing("out");
  }

  void outputs() const {
    if (run_.out.empty()) return;
    const auto place = [](const std::filesystem::path& path) {
      return std::filesystem::weakly_canonical(std::filesystem::absolute(path));
    };
    for (const std::filesystem::path& file : run_.data) {
      if (place(file) == place(run_.out)) {
        throw InputError("", "--out", "a file of its own", "one of --data, " + run_.out.string());
      }
    }
  }

  void partition() const {
    if (run_.partition.kind == PartitionKind::iid)
      needs("alpha", "--partition dirichlet or quantity", "--partition iid");
    if (run_.participation > run_.partition.num_clients) {
      throw InputError("", "--participation", fmt::format("at most the {} clients", run_.partition.num_clients),
                       fmt::format("{}", run_.participation));
    }
    const auto only = [&](const char* option, std::initializer_list<std::string_view> methods) {
      std::string names;
      for (std::string_view name : methods) {
        if (run_.method == name) return;
        names += (names.empty() ? "--method " : " or ") + std::string(name);
      }
      needs(option, names, "--method " + run_.method);
    };
    only("prox-mu", {"fedprox"});
    only("server-lr", {"fedavgm", "fedadagrad", "fedyogi", "fedadam"});
    only("server-momentum", {"fedavgm", "fedadagrad", "fedyogi", "fedadam"});
    only("server-beta2", {"fedyogi", "fedadam"});
    only("server-tau", {"fedadagrad", "fedyogi", "fedadam"});
  }

  void modules() const {
    const AdapterOptions& adapter = run_.adapter;
    if (adapter.lora_rank == 0) {
      for (const char* option : {"lora-alpha", "lora-targets", "lora-dropout", "lora-first-layer"}) {
        needs(option, "--lora-rank above 0", "--lora-rank 0");
      }
    }
    if (adapter.head != HeadKind::lowrank) {
      needs("head-rank", "--head lowrank", fmt::format("--head {}", name_of(head_kind_names, adapter.head)));
    }
    if (adapter.bottleneck == 0) needs("bottleneck-kind", "--bottleneck above 0", "--bottleneck 0");
    if (!adapter.reward_head) {
      for (const char* option : {"reward-pool", "reward-gradient"})
        needs(option, "--reward-head on", "--reward-head off");
      if (run_.loss.lambda != 0) needs("lambda", "--reward-head on", "--reward-head off");
      if (run_.loss.mu != 0) needs("mu", "--reward-head on", "--reward-head off");
    }
    const bool trains =
        adapter.lora_rank > 0 || adapter.head != HeadKind::frozen || adapter.bottleneck > 0 || adapter.reward_head;
    if (!trains) {
      throw InputError("", "--lora-rank", "something to train: a LoRA rank above 0 or a private module", "none");
    }
  }

  void loss() const {
    const std::string& kind = run_.loss.kind;
    const bool reward_head = run_.adapter.reward_head;
    if (kind == "reward" && !reward_head) {
      throw InputError("--loss reward: needs --reward-head on, found --reward-head off");
    }
    if (kind != "reward" && reward_head && !loss_needs_reference(kind)) {
      throw InputError(
          fmt::format("--loss {}: has no margin that a reward could join; needs --reward-head off, found "
                      "--reward-head on",
                      kind));
    }
    if (kind == "reward") {
      for (const char* option : {"lambda", "mu"}) needs(option, "a loss with an implicit margin", "--loss reward");
    }
    if (kind != "cdpo" && kind != "robust") needs("label-smoothing", "--loss cdpo or robust", "--loss " + kind);
    if (kind != "simpo") needs("simpo-gamma", "--loss simpo", "--loss " + kind);
  }

  void training() const {
    if (run_.schedule != LocalSchedule::alternate) needs("private-share", "--schedule alternate", "--schedule joint");
    const auto warmup = given_.find("warmup-rounds");
    if (warmup != given_.end() && run_.optimizer.warmup_rounds > 0 && run_.optimizer.warmup_rounds >= run_.rounds) {
      throw warmup->second.error(fmt::format("fewer than --rounds {}", run_.rounds), warmup->second.value());
    }
  }

  void bench() const {
    if (line_.command == Command::bench && given_.contains("shape")) {
      const auto model = given_.find("model");
      if (model != given_.end()) needs("shape", "no --model", "--model " + model->second.value());
    }
  }

 private:
  [[noreturn]] void missing(const std::string& option) const {
    const std::string name(command_names()[static_cast<std::size_t>(line_.command)].name);
    throw InputError("", "--" + option, fmt::format("{} (`{}` needs it)", find_option(option)->placeholder, name),
                     "nothing");
  }

  /// The option was given, and what it needs is not so.
  void needs(std::string_view option, std::string_view condition, std::string_view found) const {
    const auto entry = given_.find(option);
    if (entry == given_.end()) return;
    throw InputError(fmt::format("{}: needs {}, found {}", entry->second.label(), condition, found));
  }

  const CommandLine& line_;
  const RunOptions& run_;
  const GivenByName& given_;
};

}  // namespace

void check_consistency(const CommandLine& line, const GivenByName& given) {
  const Checker checker(line, given);
  checker.required();
  checker.outputs();
  checker.partition();
  checker.modules();
  checker.loss();
  checker.training();
  checker.bench();
}

}  // namespace fedpdpo
