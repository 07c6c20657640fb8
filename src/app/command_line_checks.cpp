// What options must be there and which exclude one another. Only what the user gave counts as a contradiction: the
// defaults of a method give way.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "command_line_parts.hpp"
#include "fedpdpo/fed/registry.hpp"

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
    // A run's config file may name its output.
    if (line_.command == Command::partition && on_command_line("out"))
      throw InputError("", "--out", "none: `partition` prints, and writes nothing", run_.out.string());
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
    // A cap given over a config file's least number lowers that.
    const auto [least, most] = std::pair(run_.partition.min_train, run_.partition.max_train);
    if (most > 0 && most < least && given_.contains("min-train") && given_.contains("max-train") &&
        on_command_line("min-train") == on_command_line("max-train"))
      throw given_.find("max-train")
          ->second.error(fmt::format("at least the {} of --min-train", least), fmt::format("{}", most));
  }

  void method() const {
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
    if (run_.refit > 0 && !refit_trains(run_)) {
      needs("refit",
            "a private module (--head, --bottleneck, --reward-head, --personal-lora), which it trains, or --method "
            "fedavg-ft",
            "none with --method " + run_.method);
    }
    const AdapterOptions& adapter = run_.adapter;
    if ((run_.method == "fedper" || run_.method == "fedrep") && adapter.head == HeadKind::frozen) {
      needs("head",
            fmt::format("full or lowrank, which --method {} keeps private (without it it is fedavg)", run_.method),
            "frozen");
    }
    if (run_.method == "private-only" && adapter.head == HeadKind::frozen && adapter.bottleneck == 0 &&
        !adapter.reward_head) {
      throw InputError("", "--head, --bottleneck, --reward-head",
                       "a private module, which --method private-only trains", "none");
    }
  }

  void groups() const {
    const std::string kind(name_of(group_kind_names, run_.groups));
    if (run_.groups != GroupKind::all) refuse(Feature::groups, "--groups " + kind);
    if (run_.groups == GroupKind::agreement) refuse(Feature::found_groups, "--groups agreement");
    if (run_.groups == GroupKind::domain && run_.data.size() == 1)
      needs("groups", "several files in --data, one a domain, for domain", "one file");
    if (run_.groups != GroupKind::clusters) needs("cluster-labels", "--groups clusters:K", "--groups " + kind);
    if (run_.groups != GroupKind::agreement) needs("agreement-errors", "--groups agreement", "--groups " + kind);
    for (int label : run_.cluster_labels) {
      if (label >= run_.num_clusters) {
        throw InputError("", "--cluster-labels", fmt::format("numbers below the {} of --groups", run_.num_clusters),
                         fmt::format("{}", label));
      }
    }
    if (!run_.cluster_labels.empty() &&
        run_.cluster_labels.size() != static_cast<std::size_t>(run_.partition.num_clients)) {
      throw InputError("", "--cluster-labels", fmt::format("{} numbers, one a client", run_.partition.num_clients),
                       fmt::format("{}", run_.cluster_labels.size()));
    }
    const int trained = run_.partition.num_clients - run_.partition.num_new_clients;
    if (finds_groups() && run_.num_clusters > trained) {
      throw InputError("", "--groups", fmt::format("at most as many clusters as the {} clients that train", trained),
                       fmt::format("{}", run_.num_clusters));
    }
  }

  void privacy() const {
    if (run_.privacy.clip == 0) {
      for (const char* option : {"dp-noise", "dp-delta"}) needs(option, "--dp-clip above 0", "--dp-clip 0");
      return;
    }
    refuse(Feature::privacy, "--dp-clip");
    if (finds_groups()) {
      throw InputError(fmt::format("--dp-clip: not with --groups {}, found from updates without clipping or noise",
                                   name_of(group_kind_names, run_.groups)));
    }
  }

  void compression() const {
    const Compression kind = run_.compression.kind;
    const std::string found = fmt::format("--compress {}", name_of(compression_names, kind));
    if (kind != Compression::none) refuse(Feature::compression, found);
    if (kind == Compression::none) needs("error-feedback", "--compress int8 or topk", found);
    if (kind != Compression::topk) needs("compress-share", "--compress topk", found);
  }

  void personal_lora() const {
    const PersonalLora kind = run_.adapter.personal_lora;
    const std::string found = fmt::format("--personal-lora {}", name_of(personal_lora_names, kind));
    if (kind != PersonalLora::none) {
      refuse(Feature::personal_lora, found);
      if (run_.adapter.lora_rank == 0) throw InputError(found + ": needs --lora-rank above 0, found 0");
    }
    if (kind != PersonalLora::ditto) needs("personal-prox", "--personal-lora ditto", found);
    if (kind != PersonalLora::apfl) needs("personal-mix", "--personal-lora apfl", found);
    if (kind != PersonalLora::feddpa) needs("personal-samples", "--personal-lora feddpa", found);
  }

  void lora_ranks() const {
    if (run_.lora_ranks.empty()) return;
    refuse(Feature::lora_ranks, "--lora-ranks");
    const int largest = *std::max_element(run_.lora_ranks.begin(), run_.lora_ranks.end());
    if (largest > run_.adapter.lora_rank) {
      throw InputError("", "--lora-ranks", fmt::format("ranks up to the {} of --lora-rank", run_.adapter.lora_rank),
                       fmt::format("{}", largest));
    }
    if (finds_groups())
      throw InputError("--lora-ranks: not with groups that are found: updates of different ranks do not compare");
  }

  void new_clients() const {
    const int count = run_.partition.num_new_clients;
    if (count == 0) {
      needs("new-client-steps", "--new-clients above 0", "--new-clients 0");
      return;
    }
    refuse(Feature::new_clients, "--new-clients");
    if (count >= run_.partition.num_clients) {
      throw InputError("", "--new-clients", fmt::format("fewer than the {} clients", run_.partition.num_clients),
                       fmt::format("{}", count));
    }
  }

  void reduction() const {
    if (run_.reduce_route == ReductionRoute::flat)
      needs("ranks-per-node", "--reduce-route hierarchical", "--reduce-route flat");
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
    if (reward_head && run_.loss.mu == 0 && (kind == "ipo" || kind == "kto")) {
      needs("mu", fmt::format("a weight above 0, from which alone --loss {} trains the reward head", kind), "0");
    }
    if (kind != "kto") {
      for (const char* option : {"kto-chosen-weight", "kto-rejected-weight"})
        needs(option, "--loss kto", "--loss " + kind);
    } else if (run_.loss.kto_chosen_weight == 0 && run_.loss.kto_rejected_weight == 0) {
      throw InputError("", "--kto-chosen-weight", "above 0, or --kto-rejected-weight above 0", "0 and 0");
    }
    if (run_.loss.reference_free && !loss_needs_reference(kind)) {
      needs("reference-free", "a loss with a reference", "--loss " + kind);
    }
    if (run_.loss.length_normalize && !loss_is_of_margin(kind)) {
      needs("length-normalize", "--loss dpo, cdpo, robust or hinge",
            fmt::format("--loss {}{}", kind, kind == "ipo" ? ", which always is so" : ""));
    }
  }

  void training() const {
    if (run_.schedule != LocalSchedule::alternate) needs("private-share", "--schedule alternate", "--schedule joint");
    const auto warmup = given_.find("warmup-rounds");
    if (warmup != given_.end() && run_.optimizer.warmup_rounds > 0 && run_.optimizer.warmup_rounds >= run_.rounds) {
      throw warmup->second.error(fmt::format("fewer than --rounds {}", run_.rounds), warmup->second.value());
    }
  }

  void execution() const {
    if (run_.resident > 0 && run_.resident < run_.cohort)
      throw InputError("", "--resident", fmt::format("at least the {} clients of --cohort", run_.cohort),
                       fmt::format("{}", run_.resident));
    const bool computes = line_.command == Command::run || line_.command == Command::bench;
    if (!computes || run_.device != "cpu") return;
    if (run_.aggregation == Aggregation::nccl) needs("aggregation", "a CUDA device for nccl", "--device cpu");
    // A config file made for GPUs may be used on the CPU.
    if (run_.graphs == Graphs::always && (on_command_line("graphs") || !on_command_line("device")))
      needs("graphs", "a CUDA device for on", "--device cpu");
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

  bool on_command_line(std::string_view option) const {
    const auto entry = given_.find(option);
    return entry != given_.end() && entry->second.place.empty();
  }

  bool finds_groups() const {
    return run_.groups == GroupKind::agreement || (run_.groups == GroupKind::clusters && run_.cluster_labels.empty());
  }

  void refuse(Feature feature, const std::string& option) const {
    const std::string reason = find_method(run_.method)->make(run_)->refuses(feature);
    if (!reason.empty()) throw InputError(fmt::format("{}: not with --method {}: {}", option, run_.method, reason));
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
  if (line.command == Command::export_models || line.command == Command::evaluate)
    return check_saved_models(line, given);
  const Checker checker(line, given);
  checker.required();
  checker.outputs();
  checker.partition();
  checker.method();
  checker.groups();
  checker.privacy();
  checker.compression();
  checker.personal_lora();
  checker.lora_ranks();
  checker.new_clients();
  checker.reduction();
  checker.modules();
  checker.loss();
  checker.training();
  checker.execution();
  checker.bench();
}

}  // namespace fedpdpo
