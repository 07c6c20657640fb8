// The table of all options: name, help, the subcommands that have it, and where its value goes. Defaults are those of
// RunOptions and BenchOptions; nothing here repeats them.
#include <algorithm>
#include <charconv>
#include <sstream>

#include "command_line_parts.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo {
namespace {

using enum Section;
using Arity = OptionSpec::Arity;
using Line = CommandLine;

void set_participation(Line& line, const Given& given) {
  const double value = real(given, any_positive);
  if (value > 1 && value != static_cast<double>(static_cast<std::int64_t>(value))) {
    throw given.error("a share in (0, 1] or a whole number of clients", given.value());
  }
  line.run.participation = value;
}

/// all, domain, agreement, or clusters:K.
void set_groups(Line& line, const Given& given) {
  const std::string& text = given.value();
  if (text.starts_with("clusters:")) {
    line.run.num_clusters = integer(Given{given.name, {text.substr(9)}, given.place}, 1, 1'000'000);
    line.run.groups = GroupKind::clusters;
    return;
  }
  if (text == "clusters") throw given.error("clusters:K, with the number of clusters", text);
  line.run.groups = choice(given, group_kind_names);
}

std::vector<int> integers(const Given& given, int least, int most) {
  std::vector<int> values;
  // One comma more, so that an empty last item is seen.
  std::istringstream items(given.value() + ",");
  for (std::string item; std::getline(items, item, ',');)
    values.push_back(integer(Given{given.name, {item}, given.place}, least, most));
  return values;
}

void set_clients(Line& line, const Given& given) {
  constexpr int most = 1'000'000;
  if (line.command == Command::bench) {
    line.bench.clients = integers(given, 1, most);
  } else {
    line.run.partition.num_clients = integer(given, 1, most);
  }
}

void set_data(Line& line, const Given& given) {
  for (const std::string& value : given.values) {
    require_pair_file_name(given, value);
    if (std::find(line.run.data.begin(), line.run.data.end(), value) != line.run.data.end()) {
      throw given.error("each file once", value + " twice");
    }
    line.run.data.emplace_back(value);
  }
}

std::string comma_separated(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ",") + item;
  return text;
}

void set_eval_splits(Line& line, const Given& given) {
  const std::vector<std::string> items = list(given);
  for (const std::string& item : items) {
    position(Given{given.name, {item}, given.place}, {"train", "validation", "test"});
  }
  line.run.eval_splits = comma_separated(items);
}

void set_device(Line& line, const Given& given) {
  const std::string& text = given.value();
  const bool numbered = text.starts_with("cuda:") && text.size() > 5 && text.size() <= 8 &&
                        text.find_first_not_of("0123456789", 5) == std::string::npos;
  if (text != "cpu" && text != "cuda" && text != "auto" && !numbered) {
    throw given.error("cpu, cuda, cuda:INDEX or auto", text + suggestion(text, {"cpu", "cuda", "auto"}));
  }
  line.run.device = text;
}

void set_client(Line& line, const Given& given) {
  const std::string& text = given.value();
  if (text != "all" && text != "shared" &&
      (text.size() > 7 || text.find_first_not_of("0123456789") != std::string::npos))
    throw given.error("a client's number, all or shared", text + suggestion(text, {"all", "shared"}));
  line.saved.client = text;
}

void set_split(Line& line, const Given& given) {
  line.saved.split = static_cast<Split>(position(given, {split_names.begin(), split_names.end()}));
}

void set_json(Line& line, const Given& given) {
  (line.command == Command::bench ? line.bench.json : line.saved.json) = given.value();
}

void set_loss(Line& line, const Given& given) {
  const std::vector<std::string> names(loss_names().begin(), loss_names().end());
  line.run.loss.kind = names[position(given, names)];
}

void set_bench_tokens(Line& line, const Given& given) {
  std::string_view rest = given.value();
  for (int part = 0; part < 3; ++part) {
    int length = 0;
    const auto [stop, failure] = std::from_chars(rest.data(), rest.data() + rest.size(), length);
    const auto used = static_cast<std::size_t>(stop - rest.data());
    const bool ends = used == rest.size();
    if (failure != std::errc{} || length < 1 || (part < 2 ? ends || rest[used] != '/' : !ends)) {
      throw given.error("PROMPT/CHOSEN/REJECTED, three integers >= 1", given.value());
    }
    rest.remove_prefix(ends ? used : used + 1);
  }
  line.bench.tokens = given.value();
}

// clang-format off
std::vector<OptionSpec> make_table() {
  return {
      {"config", "FILE", "options from a file of `key = value` lines; the command line wins", input,
       [](Line&, const Given&) {}},
      {"model", "DIR", "HuggingFace model folder: config.json, *.safetensors, tokenizer.json", input,
       [](Line& l, const Given& g) { l.run.model = g.value(); }},
      {"data", "FILE...", "preference pairs made by data_prep/prepare.py, one file a domain", input, set_data,
       Arity::several},

      {"checkpoint", "DIR", "a run's folder of checkpoints (OUT.ckpt: the newest one made at the end of a round), or one round's "
       "folder in it", saved, [](Line& l, const Given& g) { l.saved.checkpoint = g.value(); }},
      {"client", "K|all|shared", "whose model: client K's, every client's, or what all share; clients' models are those that the "
       "run evaluates as `after`: the average that each received with its own modules (eval: [all])", saved, set_client},
      {"merge", "", "export a whole model folder with everything that is linear merged into the weights, instead of an adapter",
       saved, [](Line& l, const Given& g) { l.saved.merge = on_or_off(g); }, Arity::none},
      {"adapter", "DIR", "a PEFT folder with LoRA on --model: one that export wrote, or another's", saved,
       [](Line& l, const Given& g) { l.saved.adapter = g.value(); }},
      {"reference", "DIR", "model folder whose log-probabilities margins are held against", saved,
       [](Line& l, const Given& g) { l.saved.reference = g.value(); }, Arity::one,
       "--model, or what it was merged from"},
      {"split", "NAME", "pairs of train, validation or test", saved, set_split, Arity::one, "test"},

      {"method", "NAME", "federated method, see below", federation,
       [](Line& l, const Given& g) { l.run.method = method_names()[position(g, method_names())]; }},
      {"clients", "N", "number of clients (bench: a list, each number with each of --pairs)", federation, set_clients,
       Arity::one, "number of data files if several, else 10; bench: 1"},
      {"partition", "KIND", "how pairs go to clients: dirichlet (skewed categories), iid, quantity (skewed sizes)",
       federation,
       [](Line& l, const Given& g) { l.run.partition.kind = choice(g, partition_kind_names); }},
      {"alpha", "X", "concentration of the Dirichlet skew; smaller is more skewed", federation,
       [](Line& l, const Given& g) { l.run.partition.alpha = real(g, any_positive); }},
      {"flip-clients", "SHARE", "share of the clients whose preferences are swapped", federation,
       [](Line& l, const Given& g) { l.run.partition.flip_clients = real(g, share); }},
      {"new-clients", "N", "of the clients, so many that never train; at the end they receive LoRA and fit what is private",
       federation, [](Line& l, const Given& g) { l.run.partition.num_new_clients = integer(g, 0, 1'000'000); }},
      {"new-client-steps", "N", "steps for which new clients fit their private modules", federation,
       [](Line& l, const Given& g) { l.run.new_client_steps = integer(g, 0); }},
      {"min-train", "N", "least number of train pairs of a client", federation,
       [](Line& l, const Given& g) { l.run.partition.min_train = unsigned_integer(g, 1); }},
      {"max-train", "N", "keep at most N train pairs a client, 0: all", federation,
       [](Line& l, const Given& g) { l.run.partition.max_train = unsigned_integer(g); }},
      {"max-validation", "N", "keep at most N validation pairs a client, 0: all", federation,
       [](Line& l, const Given& g) { l.run.partition.max_validation = unsigned_integer(g); }},
      {"max-test", "N", "keep at most N test pairs a client, 0: all", federation,
       [](Line& l, const Given& g) { l.run.partition.max_test = unsigned_integer(g); }},
      {"seed", "N", "of everything that is drawn", federation,
       [](Line& l, const Given& g) { l.run.partition.seed = unsigned_integer(g); }},
      {"rounds", "N", "rounds of local training and averaging", federation,
       [](Line& l, const Given& g) { l.run.rounds = integer(g, 0); }},
      {"steps", "N", "local steps a round", federation, [](Line& l, const Given& g) { l.run.steps = integer(g, 1); }},
      {"batch", "N", "pairs a step", federation, [](Line& l, const Given& g) { l.run.batch = integer(g, 1); }},
      {"participation", "X", "clients sampled each round: a share up to 1 (all), or a number above 1", federation,
       set_participation},
      {"groups", "KIND", "whose updates are averaged together: all; domain (one adapter a data file); clusters:K (by the "
       "directions of the first updates); agreement (as many groups as conflicting directions, found anew each round)",
       federation, set_groups},
      {"cluster-labels", "LIST", "clusters: the group of every client, as 0,0,1,1; without it they are found", federation,
       [](Line& l, const Given& g) { l.run.cluster_labels = integers(g, 0, 1'000'000); }},
      {"agreement-errors", "X", "agreement: groups stay apart where their updates' mean cosine is more than X standard "
       "errors below 0", federation, [](Line& l, const Given& g) { l.run.agreement_errors = real(g, not_negative); }},
      {"dp-clip", "C", "client-level differential privacy: largest norm of a client's update, 0: none", federation,
       [](Line& l, const Given& g) { l.run.privacy.clip = real(g, not_negative); }},
      {"dp-noise", "X", "noise on the average, in units of one client's largest effect on it", federation,
       [](Line& l, const Given& g) { l.run.privacy.noise_multiplier = real(g, not_negative); }},
      {"dp-delta", "X", "the delta that epsilon is told for", federation,
       [](Line& l, const Given& g) { l.run.privacy.delta = real(g, open_share); }},
      {"compress", "KIND", "updates sent as they are (none), in 8 bits a number (int8), or the largest alone (topk)",
       federation, [](Line& l, const Given& g) { l.run.compression.kind = choice(g, compression_names); }},
      {"compress-share", "SHARE", "topk: share of the numbers that are sent", federation,
       [](Line& l, const Given& g) { l.run.compression.topk_share = real(g, positive_share); }},
      {"error-feedback", "on|off", "what compression leaves out is added to the client's next update", federation,
       [](Line& l, const Given& g) { l.run.compression.error_feedback = on_or_off(g); }},
      {"reduce", "KIND", "sum over ranks: exact (the same bits on any number of ranks) or fast", federation,
       [](Line& l, const Given& g) { l.run.reduce = choice(g, reduction_names); }},
      {"reduce-route", "KIND", "of the sum: flat, or hierarchical (inside every node, then between the nodes)", federation,
       [](Line& l, const Given& g) { l.run.reduce_route = choice(g, reduction_route_names); }},
      {"ranks-per-node", "N", "hierarchical: N consecutive ranks count as a node (a socket), 0: the nodes as MPI sees them",
       federation,
       [](Line& l, const Given& g) { l.run.ranks_per_node = integer(g, 0); }},
      {"aggregation", "ROUTE", "where sums over clients are made: auto (on the GPUs by NCCL where every rank has its own), host, nccl",
       federation, [](Line& l, const Given& g) { l.run.aggregation = choice(g, aggregation_names); }},
      {"prox-mu", "X", "fedprox: weight of the proximal term", federation,
       [](Line& l, const Given& g) { l.run.prox_mu = real(g, not_negative); }},
      {"server-lr", "X", "fedavgm, fedadagrad, fedyogi, fedadam: the server's rate", federation,
       [](Line& l, const Given& g) { l.run.server_lr = real(g, any_positive); }},
      {"server-momentum", "X", "the same methods: momentum, beta1", federation,
       [](Line& l, const Given& g) { l.run.server_momentum = real(g, below_one); }},
      {"server-beta2", "X", "fedyogi, fedadam: decay of the second moment", federation,
       [](Line& l, const Given& g) { l.run.server_beta2 = real(g, below_one); }},
      {"server-tau", "X", "fedadagrad, fedyogi, fedadam: adaptivity", federation,
       [](Line& l, const Given& g) { l.run.server_tau = real(g, any_positive); }},
      {"refit", "N", "steps of every client after averaging, before the evaluation, that train its private modules alone "
       "(fedavg-ft: LoRA, too)", federation,
       [](Line& l, const Given& g) { l.run.refit = integer(g, 0); }},

      {"lora-rank", "R", "rank of the LoRA adapter, 0: none", modules,
       [](Line& l, const Given& g) { l.run.adapter.lora_rank = integer(g, 0, 4096); }},
      {"lora-alpha", "X", "the adapter's output is scaled by alpha / rank", modules,
       [](Line& l, const Given& g) { l.run.adapter.lora_alpha = real(g, any_positive); }},
      {"lora-targets", "LIST", "all-linear, or names separated by commas: q_proj,v_proj", modules,
       [](Line& l, const Given& g) { l.run.adapter.lora_targets = comma_separated(list(g)); }},
      {"lora-dropout", "P", "dropout on the adapter's input", modules,
       [](Line& l, const Given& g) { l.run.adapter.lora_dropout = real(g, below_one); }},
      {"lora-first-layer", "N", "layers below N carry no adapter and need no backward pass", modules,
       [](Line& l, const Given& g) { l.run.adapter.lora_first_layer = integer(g, 0); }},
      {"lora-ranks", "LIST", "flora: ranks dealt to the clients in turn, each at most --lora-rank", modules,
       [](Line& l, const Given& g) { l.run.lora_ranks = integers(g, 1, 4096); }},
      {"personal-lora", "KIND", "second LoRA, private: none, ditto (drawn to the shared one), apfl (learned mixture), feddpa "
       "(weighted by an instance's likeness to the client's data)", modules,
       [](Line& l, const Given& g) { l.run.adapter.personal_lora = choice(g, personal_lora_names); }},
      {"personal-prox", "X", "ditto: weight of the pull towards the shared LoRA", modules,
       [](Line& l, const Given& g) { l.run.personal_prox = real(g, not_negative); }},
      {"personal-mix", "SHARE", "apfl: the personal LoRA's share at the start", modules,
       [](Line& l, const Given& g) { l.run.personal_mix = real(g, share); }},
      {"personal-samples", "N", "feddpa: train pairs that stand for a client's data", modules,
       [](Line& l, const Given& g) { l.run.personal_samples = integer(g, 1); }},
      {"head", "KIND", "private LLM head: full (all weights), lowrank, frozen (none)", modules,
       [](Line& l, const Given& g) { l.run.adapter.head = choice(g, head_kind_names); }},
      {"head-rank", "R", "rank of --head lowrank", modules,
       [](Line& l, const Given& g) { l.run.adapter.head_rank = integer(g, 1, 65536); }},
      {"bottleneck", "M", "width of the private bottleneck adapter, 0: none", modules,
       [](Line& l, const Given& g) { l.run.adapter.bottleneck = integer(g, 0, 65536); }},
      {"bottleneck-kind", "KIND", "residual (added to the hidden state) or gated (mixed with it)", modules,
       [](Line& l, const Given& g) { l.run.adapter.bottleneck_kind = choice(g, bottleneck_kind_names); }},
      {"reward-head", "on|off", "private explicit reward head", modules,
       [](Line& l, const Given& g) { l.run.adapter.reward_head = on_or_off(g); }},
      {"reward-pool", "KIND", "what the reward reads: the last token of a response, or the mean of all", modules,
       [](Line& l, const Given& g) { l.run.adapter.reward_pool = choice(g, reward_pool_names); }},
      {"reward-gradient", "WHERE", "behind the reward head its gradient reaches: all, private modules, none", modules,
       [](Line& l, const Given& g) { l.run.adapter.reward_gradient = choice(g, reward_gradient_names); }},

      {"loss", "NAME", "preference loss", loss, set_loss},
      {"beta", "X", "strength of the implicit reward", loss,
       [](Line& l, const Given& g) { l.run.loss.beta = real(g, any_positive); }},
      {"lambda", "X", "weight of the explicit margin beside the implicit one", loss,
       [](Line& l, const Given& g) { l.run.loss.lambda = real(g, not_negative); }},
      {"mu", "X", "weight of the reward head's own Bradley-Terry term", loss,
       [](Line& l, const Given& g) { l.run.loss.mu = real(g, not_negative); }},
      {"label-smoothing", "P", "cdpo, robust: probability that a label is wrong", loss,
       [](Line& l, const Given& g) { l.run.loss.label_smoothing = real(g, below_half); }},
      {"simpo-gamma", "X", "simpo: target margin over beta", loss,
       [](Line& l, const Given& g) { l.run.loss.simpo_gamma = real(g, not_negative); }},
      {"kto-chosen-weight", "X", "kto: weight of the chosen responses' half", loss,
       [](Line& l, const Given& g) { l.run.loss.kto_chosen_weight = real(g, not_negative); }},
      {"kto-rejected-weight", "X", "kto: weight of the rejected responses' half", loss,
       [](Line& l, const Given& g) { l.run.loss.kto_rejected_weight = real(g, not_negative); }},
      {"reference-free", "on|off", "losses with a reference: take its log-probabilities as 0", loss,
       [](Line& l, const Given& g) { l.run.loss.reference_free = on_or_off(g); }},
      {"length-normalize", "on|off", "dpo, cdpo, robust, hinge: log-ratios per response token", loss,
       [](Line& l, const Given& g) { l.run.loss.length_normalize = on_or_off(g); }},

      {"lr-shared", "X", "learning rate of LoRA", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.lr_shared = real(g, not_negative); }},
      {"lr-private", "X", "learning rate of bottleneck, LLM head, reward head and personal LoRA", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.lr_private = real(g, not_negative); }},
      {"weight-decay", "X", "AdamW's decoupled decay", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.weight_decay = real(g, not_negative); }},
      {"adam-beta1", "X", "decay of the first moment", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.beta1 = real(g, below_one); }},
      {"adam-beta2", "X", "decay of the second moment", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.beta2 = real(g, below_one); }},
      {"adam-epsilon", "X", "added to the root of the second moment", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.epsilon = real(g, any_positive); }},
      {"clip", "X", "largest norm of a client's gradient, 0: no clipping", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.clip = real(g, not_negative); }},
      {"lr-schedule", "KIND", "learning rates over the rounds: constant or cosine", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.schedule = choice(g, rate_schedule_names); }},
      {"warmup-rounds", "N", "rounds of linear warm-up", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.warmup_rounds = integer(g, 0); }},
      {"moments", "keep|reset", "Adam's moments from round to round", optimizer,
       [](Line& l, const Given& g) { l.run.optimizer.moments = choice(g, moments_names); }},
      {"schedule", "KIND", "joint (all trainables each step) or alternate (private ones first, then LoRA)", optimizer,
       [](Line& l, const Given& g) { l.run.schedule = choice(g, local_schedule_names); }},
      {"private-share", "SHARE", "alternate: share of the steps in the private phase", optimizer,
       [](Line& l, const Given& g) { l.run.private_share = real(g, share); }},

      {"device", "NAME", "cpu, cuda, cuda:INDEX or auto", execution, set_device},
      {"precision", "KIND", "of the frozen weights: fp32, or bf16 with fp32 sums", execution,
       [](Line& l, const Given& g) { l.run.precision = choice(g, precision_names); }},
      {"threads", "N", "CPU threads a rank", execution,
       [](Line& l, const Given& g) { l.run.threads = integer(g, 1, 4096); }},
      {"cohort", "auto|N", "clients that a rank trains in lock-step, at most; auto: 1 on the CPU, on a GPU as many as fit "
       "and pay", execution,
       [](Line& l, const Given& g) { l.run.cohort = integer_or_auto(g); }},
      {"micro-rows", "auto|N", "packed tokens a forward and backward pass, shared by a cohort; auto: 1024 on the CPU, on a "
       "GPU what fills it", execution,
       [](Line& l, const Given& g) { l.run.micro_rows = integer_or_auto(g); }},
      {"resident", "auto|N", "clients whose state a rank keeps on its device at once, the others' being swapped; auto: as "
       "many as fit", execution,
       [](Line& l, const Given& g) { l.run.resident = integer_or_auto(g); }},
      {"graphs", "auto|on|off", "on a GPU, give a training pass as one CUDA graph; auto: small passes; their batches are filled up "
       "to recurring sizes", execution,
       [](Line& l, const Given& g) { l.run.graphs = choice(g, graphs_names); }},

      {"out", "FILE.h5", "file to write (export: folder)", output, [](Line& l, const Given& g) { l.run.out = g.value(); }},
      {"overwrite", "", "replace an existing one", output,
       [](Line& l, const Given& g) { l.run.overwrite = on_or_off(g); }, Arity::none},
      {"eval-every", "N", "rounds from evaluation to evaluation", output,
       [](Line& l, const Given& g) { l.run.eval_every = integer(g, 1); }},
      {"aggregation-error-every", "auto|N", "rounds from one LoRA aggregation error to the next, 0: none; auto: in the rounds that "
       "are evaluated", output,
       [](Line& l, const Given& g) {
         l.run.aggregation_error_every = g.value() == "auto" ? std::nullopt : std::optional(integer(g, 0));
       }},
      {"eval-splits", "LIST", "of train, validation and test", output, set_eval_splits},
      {"cross-eval", "", "at the end evaluate every client's model on every client's test pairs", output,
       [](Line& l, const Given& g) { l.run.cross_eval = on_or_off(g); }, Arity::none},
      {"checkpoint-every", "N", "rounds from checkpoint to checkpoint, the last round's always among them (1000000: that one alone); 0: only "
       "when a signal stops the run", output,
       [](Line& l, const Given& g) { l.run.checkpoint_every = integer(g, 0); }},
      {"checkpoint-dir", "DIR", "folder of the checkpoints", output,
       [](Line& l, const Given& g) { l.run.checkpoint_dir = g.value(); }, Arity::one, "OUT without .h5, plus .ckpt"},
      {"resume", "auto|none", "auto: go on from the newest valid checkpoint if there is one", output,
       [](Line& l, const Given& g) { l.run.resume = choice(g, resume_names); }},
      {"reference-cache", "DIR", "log-probabilities of the reference, kept for other runs", output,
       [](Line& l, const Given& g) { l.run.reference_cache = g.value(); }, Arity::one,
       "$FEDPDPO_CACHE, else $XDG_CACHE_HOME/fedpdpo, else ~/.cache/fedpdpo"},

      {"shape", "NAME", "a model shape with random weights, instead of --model", bench,
       [](Line& l, const Given& g) { l.bench.shape = g.value(); }},
      {"tokens", "P/C/R", "tokens of prompt, chosen and rejected response", bench, set_bench_tokens},
      {"pairs", "LIST", "pairs of a client in a step", bench,
       [](Line& l, const Given& g) { l.bench.pairs = integers(g, 1, 1'000'000); }},
      {"repeats", "N", "timed repetitions", bench, [](Line& l, const Given& g) { l.bench.repeats = integer(g, 1); }},
      {"warmup", "N", "steps before the first that is timed", bench,
       [](Line& l, const Given& g) { l.bench.warmup = integer(g, 1); }},
      {"most-seconds", "X", "time a combination's repetitions may take: fewer of them, or none where one step is expected "
       "to take longer; 0: no limit", bench,
       [](Line& l, const Given& g) { l.bench.most_seconds = real(g, not_negative); }},
      {"ceiling", "N", "side of the large product that a step's rate is held against", bench,
       [](Line& l, const Given& g) { l.bench.ceiling = integer(g, 16, 1 << 16); }, Arity::one, "8192 on a device, else 1024"},
      {"json", "FILE", "write all figures there; -: print them instead of the table", bench, set_json},
      {"profile", "", "seconds by operation, from one more step in which each is waited for", bench,
       [](Line& l, const Given& g) { l.bench.profile = on_or_off(g); }, Arity::none},
      {"count", "", "bytes and arithmetic of a device's step by operation, counted and not computed", bench,
       [](Line& l, const Given& g) { l.bench.count = on_or_off(g); }, Arity::none},
  };
}
// clang-format on

}  // namespace

const std::vector<OptionSpec>& option_table() {
  static const std::vector<OptionSpec> table = make_table();
  return table;
}

const OptionSpec* find_option(std::string_view name) {
  const auto& table = option_table();
  const auto found = std::find_if(table.begin(), table.end(), [&](const OptionSpec& o) { return o.name == name; });
  return found == table.end() ? nullptr : &*found;
}

bool accepts(Command command, const OptionSpec& option) {
  switch (command) {
    case Command::run:
    case Command::plan:
    case Command::partition:
      return option.section != bench && option.section != saved;
    case Command::export_models:
      return option.name == "model" || option.name == "checkpoint" || option.name == "client" ||
             option.name == "merge" || option.name == "out" || option.name == "overwrite";
    case Command::evaluate:
      return (option.section == saved && option.name != "merge") || option.section == loss || option.name == "model" ||
             option.name == "data" || option.name == "device" || option.name == "precision" ||
             option.name == "threads" || option.name == "micro-rows" || option.name == "out" ||
             option.name == "overwrite" || option.name == "json" || option.name == "reference-cache";
    case Command::bench:
      return option.section == modules || option.section == loss || option.section == execution ||
             option.section == bench || option.name == "config" || option.name == "model" || option.name == "method" ||
             option.name == "seed" || option.name == "clients";
    default:
      return false;
  }
}

std::vector<std::string> option_names(Command command) {
  std::vector<std::string> names;
  for (const OptionSpec& option : option_table()) {
    if (accepts(command, option)) names.push_back(option.name);
  }
  return names;
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const MethodInfo& method : methods()) names.push_back(method.name);
  return names;
}

const std::vector<CommandName>& command_names() {
  static const std::vector<CommandName> names = {
      {Command::run, "run", "simulate a federation and write its run file"},
      {Command::plan, "plan", "say what a run would do: clients per rank, balance, memory, bytes, time"},
      {Command::partition, "partition", "show which client gets how many pairs of which category"},
      {Command::export_models, "export",
       "write clients' models of a checkpoint for HuggingFace's PEFT and transformers"},
      {Command::evaluate, "eval", "score a model, a checkpoint's models or a PEFT adapter on preference pairs"},
      {Command::inspect, "inspect", "describe run files, evaluations, pair files, models, exported ones too, and checkpoints"},
      {Command::bench, "bench", "measure a training step"},
      {Command::help, "help", "this text, or `help SUBCOMMAND`"},
      {Command::version, "version", "version and build"},
  };
  return names;
}

}  // namespace fedpdpo
