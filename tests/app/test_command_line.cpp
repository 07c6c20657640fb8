// The command line: every option reaches RunOptions, the order of precedence, and the line of every mistake.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "fedpdpo/app/command_line.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using Words = std::vector<std::string>;

Words run_with(const Words& more) {
  Words words = {"run", "--model", "models/m", "--data", "a.h5", "--out", "runs/o.h5"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::map<std::string, std::string> described(const Words& more) {
  return describe(parse_command_line(run_with(more)).run);
}

struct OptionCase {
  std::string option, value, expected;
  Words also;  // what the option needs beside it
};

std::ostream& operator<<(std::ostream& out, const OptionCase& c) { return out << c.option; }

const std::vector<OptionCase>& option_cases() {
  static const std::vector<OptionCase> cases = {
      {"method", "fedprox", "fedprox", {}},
      {"clients", "7", "7", {}},
      {"partition", "quantity", "quantity", {}},
      {"alpha", "0.07", "0.07", {}},
      {"flip-clients", "0.25", "0.25", {}},
      {"min-train", "3", "3", {}},
      {"max-train", "31", "31", {}},
      {"max-validation", "32", "32", {}},
      {"max-test", "33", "33", {}},
      {"seed", "18446744073709551615", "18446744073709551615", {}},
      {"rounds", "123", "123", {}},
      {"steps", "9", "9", {}},
      {"batch", "11", "11", {}},
      {"participation", "0.4", "0.4", {}},
      {"groups", "domain", "domain", {"--data", "b.h5"}},
      {"cluster-labels", "0,0,1,1", "0,0,1,1", {"--groups", "clusters:2", "--clients", "4"}},
      {"agreement-errors", "2.5", "2.5", {"--groups", "agreement"}},
      {"new-clients", "2", "2", {}},
      {"new-client-steps", "5", "5", {"--new-clients", "2"}},
      {"dp-clip", "0.5", "0.5", {}},
      {"dp-noise", "1.1", "1.1", {"--dp-clip", "1"}},
      {"dp-delta", "1e-6", "1e-06", {"--dp-clip", "1"}},
      {"compress", "int8", "int8", {}},
      {"compress-share", "0.2", "0.2", {"--compress", "topk"}},
      {"error-feedback", "off", "off", {"--compress", "topk"}},
      {"reduce", "fast", "fast", {}},
      {"reduce-route", "hierarchical", "hierarchical", {}},
      {"ranks-per-node", "2", "2", {"--reduce-route", "hierarchical"}},
      {"aggregation", "host", "host", {}},
      {"prox-mu", "0.125", "0.125", {"--method", "fedprox"}},
      {"server-lr", "0.25", "0.25", {"--method", "fedavgm"}},
      {"server-momentum", "0.75", "0.75", {"--method", "fedadagrad"}},
      {"server-beta2", "0.875", "0.875", {"--method", "fedadam"}},
      {"server-tau", "0.0625", "0.0625", {"--method", "fedyogi"}},
      {"refit", "6", "6", {"--head", "full"}},
      {"lora-rank", "5", "5", {}},
      {"lora-alpha", "3.5", "3.5", {}},
      {"lora-targets", "q_proj, v_proj", "q_proj,v_proj", {}},
      {"lora-dropout", "0.05", "0.05", {}},
      {"lora-first-layer", "2", "2", {}},
      {"lora-ranks", "4,8", "4,8", {"--method", "flora"}},
      {"personal-lora", "apfl", "apfl", {}},
      {"personal-prox", "0.25", "0.25", {"--personal-lora", "ditto"}},
      {"personal-mix", "0.25", "0.25", {"--personal-lora", "apfl"}},
      {"personal-samples", "7", "7", {"--personal-lora", "feddpa"}},
      {"head", "lowrank", "lowrank", {}},
      {"head-rank", "3", "3", {"--head", "lowrank"}},
      {"bottleneck", "19", "19", {}},
      {"bottleneck-kind", "gated", "gated", {"--bottleneck", "4"}},
      {"reward-head", "on", "on", {}},
      {"reward-pool", "mean", "mean", {"--reward-head", "on"}},
      {"reward-gradient", "private", "private", {"--reward-head", "on"}},
      {"loss", "ipo", "ipo", {}},
      {"beta", "0.35", "0.35", {}},
      {"lambda", "0.75", "0.75", {"--reward-head", "on"}},
      {"mu", "0.8", "0.8", {"--reward-head", "on"}},
      {"label-smoothing", "0.2", "0.2", {"--loss", "cdpo"}},
      {"simpo-gamma", "0.9", "0.9", {"--loss", "simpo"}},
      {"kto-chosen-weight", "1.25", "1.25", {"--loss", "kto"}},
      {"kto-rejected-weight", "0.75", "0.75", {"--loss", "kto"}},
      {"reference-free", "on", "on", {"--loss", "kto"}},
      {"length-normalize", "on", "on", {"--loss", "hinge"}},
      {"lr-shared", "3e-5", "3e-05", {}},
      {"lr-private", "0.0123", "0.0123", {}},
      {"weight-decay", "0.015", "0.015", {}},
      {"adam-beta1", "0.85", "0.85", {}},
      {"adam-beta2", "0.95", "0.95", {}},
      {"adam-epsilon", "1e-6", "1e-06", {}},
      {"clip", "0.3", "0.3", {}},
      {"lr-schedule", "cosine", "cosine", {}},
      {"warmup-rounds", "4", "4", {}},
      {"moments", "reset", "reset", {}},
      {"schedule", "alternate", "alternate", {}},
      {"private-share", "0.2", "0.2", {"--schedule", "alternate"}},
      {"device", "cuda:1", "cuda:1", {}},
      {"precision", "bf16", "bf16", {}},
      {"threads", "4", "4", {}},
      {"cohort", "5", "5", {}},
      {"micro-rows", "77", "77", {}},
      {"resident", "6", "6", {}},
      {"graphs", "off", "off", {}},
      {"eval-every", "5", "5", {}},
      {"aggregation-error-every", "3", "3", {}},
      {"eval-splits", "test", "test", {}},
      {"checkpoint-every", "6", "6", {}},
      {"checkpoint-dir", "elsewhere", "elsewhere", {}},
      {"resume", "auto", "auto", {}},
      {"reference-cache", "here/cache", "here/cache", {}},
  };
  return cases;
}

// The method is fedavg, whose modules are off unless a case turns them on.
Words plain_method(const OptionCase& c) {
  const bool names_method = c.option == "method" || std::find(c.also.begin(), c.also.end(), "--method") != c.also.end();
  return names_method ? Words{} : Words{"--method", "fedavg"};
}

class EveryOption : public testing::TestWithParam<OptionCase> {};

TEST_P(EveryOption, ChangesItsValueAndNoOther) {
  const OptionCase& c = GetParam();
  Words without = plain_method(c);
  without.insert(without.end(), c.also.begin(), c.also.end());
  Words with = without;
  with.insert(with.end(), {"--" + c.option, c.value});
  const auto before = described(without), after = described(with);
  EXPECT_NE(before.at(c.option), c.expected) << "the case must not use the default";
  EXPECT_EQ(after.at(c.option), c.expected);
  if (c.option == "method" || c.option == "reward-head") return;  // both set others
  for (const auto& [name, value] : before) {
    if (name == c.option) continue;
    EXPECT_EQ(after.at(name), value) << name;
  }
}

TEST_P(EveryOption, WorksAsAdjacentWordAndInAConfigFile) {
  const OptionCase& c = GetParam();
  Words words = plain_method(c);
  words.insert(words.end(), c.also.begin(), c.also.end());
  Words adjacent = words;
  adjacent.push_back("--" + c.option + "=" + c.value);
  EXPECT_EQ(described(adjacent).at(c.option), c.expected);
  const test::TemporaryFolder folder;
  test::write_text(folder / "x.cfg", "[any section]\n" + c.option + " = " + c.value + "   # why\n");
  words.insert(words.end(), {"--config", (folder / "x.cfg").string()});
  EXPECT_EQ(described(words).at(c.option), c.expected);
}

TEST_P(EveryOption, StandsInTheHelp) {
  const std::string help = parse_command_line({"run", "--help"}).help;
  EXPECT_NE(help.find("--" + GetParam().option + " "), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(CommandLine, EveryOption, testing::ValuesIn(option_cases()), [](const auto& test_case) {
  std::string name = test_case.param.option;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(CommandLine, CasesCoverEveryDescribedOption) {
  std::set<std::string> covered = {"model", "data", "out", "overwrite", "cross-eval"};  // tested below
  for (const OptionCase& c : option_cases()) covered.insert(c.option);
  for (const auto& [name, value] : describe(RunOptions{})) EXPECT_TRUE(covered.contains(name)) << name;
  EXPECT_EQ(covered.size(), describe(RunOptions{}).size());
}

TEST(CommandLine, InputsAndOutputs) {
  const auto options = described({"--overwrite"});
  EXPECT_EQ(options.at("model"), "models/m");
  EXPECT_EQ(options.at("data"), "a.h5");
  EXPECT_EQ(options.at("out"), "runs/o.h5");
  EXPECT_EQ(options.at("overwrite"), "on");
  EXPECT_EQ(described({}).at("overwrite"), "off");
  EXPECT_EQ(described({}).at("cross-eval"), "off");
  EXPECT_EQ(described({"--cross-eval"}).at("cross-eval"), "on");
  EXPECT_EQ(described({}).at("checkpoint-dir"), "runs/o.ckpt");
}

TEST(CommandLine, SeveralDataFilesAndTheNumberOfClients) {
  const auto parsed = [](const Words& words) { return parse_command_line(words).run; };
  EXPECT_EQ(parsed({"partition", "--data", "a.h5"}).partition.num_clients, 10);
  const RunOptions three = parsed({"partition", "--data", "a.h5", "b.h5", "--data", "c.h5", "--seed", "1"});
  EXPECT_EQ(three.data.size(), 3u);
  EXPECT_EQ(three.partition.num_clients, 3);
  EXPECT_EQ(describe(three).at("data"), "a.h5 b.h5 c.h5");
  EXPECT_EQ(parsed({"partition", "--data", "a.h5", "b.h5", "--clients", "10"}).partition.num_clients, 10);
}

TEST(CommandLine, NumbersReadBackAsTheSameValue) {
  RunOptions options;
  options.optimizer.lr_shared = 0.1 + 0.2;
  EXPECT_EQ(described({"--lr-shared", describe(options).at("lr-shared")}).at("lr-shared"), "0.30000000000000004");
}

TEST(CommandLine, WithoutRewardHeadItsWeightsAreZero) {
  const auto options = described({"--reward-head", "off", "--lambda", "0"});
  EXPECT_EQ(options.at("lambda"), "0");
  EXPECT_EQ(options.at("mu"), "0");
}

TEST(CommandLine, PrecedenceOfCommandLineConfigMethodAndDefault) {
  const test::TemporaryFolder folder;
  const std::string config = (folder / "x.cfg").string();
  test::write_text(config,
                   "# an experiment\n; another comment\n[input]\nmodel = from/config\ndata = x.h5 \"with blank.h5\"\n"
                   "data = y.h5\n[federation]\nmethod = fedavg\nsteps = 5\nrounds = 6\noverwrite = on\n");
  const CommandLine line = parse_command_line({"run", "--config", config, "--rounds", "7", "--out", "o.h5"});
  EXPECT_EQ(line.run.method, "fedavg");
  EXPECT_EQ(line.run.model, "from/config");
  EXPECT_EQ(line.run.data, (std::vector<std::filesystem::path>{"x.h5", "with blank.h5", "y.h5"}));
  EXPECT_EQ(line.run.steps, 5);
  EXPECT_EQ(line.run.rounds, 7);
  EXPECT_TRUE(line.run.overwrite);
  const CommandLine other =
      parse_command_line({"run", "--config", config, "--method", "local", "--data", "z.h5", "--out", "o.h5"});
  EXPECT_EQ(other.run.method, "local");
  EXPECT_EQ(other.run.data, (std::vector<std::filesystem::path>{"z.h5"}));
}

TEST(CommandLine, MethodDefaultsHoldUnlessTheUserSaysOtherwise) {
  for (const MethodInfo& method : methods()) {
    RunOptions expected;
    expected.method = method.name;
    if (method.defaults) method.defaults(expected);
    const auto options = described({"--method", method.name});
    for (const auto& [name, value] : describe(expected)) {
      const bool derived = (name == "lambda" || name == "mu") && !expected.adapter.reward_head;
      if (name == "model" || name == "data" || name == "out" || name == "checkpoint-dir" || name == "reference-cache" ||
          derived)
        continue;
      EXPECT_EQ(options.at(name), value) << method.name << " " << name;
    }
    EXPECT_EQ(described({"--bottleneck", "21", "--method", method.name}).at("bottleneck"), "21");
  }
}

TEST(CommandLine, ReferenceCacheFollowsTheEnvironment) {
  const auto with = [](const char* name, const char* value) {
    const char* old = std::getenv(name);
    const std::string saved = old == nullptr ? "" : old;
    ::setenv(name, value, 1);
    const std::string cache = described({}).at("reference-cache");
    if (old == nullptr) {
      ::unsetenv(name);
    } else {
      ::setenv(name, saved.c_str(), 1);
    }
    return cache;
  };
  EXPECT_EQ(with("FEDPDPO_CACHE", "/some/cache"), "/some/cache");
  if (std::getenv("FEDPDPO_CACHE") != nullptr) return;
  EXPECT_EQ(with("XDG_CACHE_HOME", "/xdg"), "/xdg/fedpdpo");
  if (std::getenv("XDG_CACHE_HOME") != nullptr) return;
  EXPECT_EQ(with("HOME", "/home/ann"), "/home/ann/.cache/fedpdpo");
}

TEST(CommandLine, SubcommandsHelpAndVersion) {
  EXPECT_EQ(parse_command_line({}).command, Command::help);
  for (const char* word : {"help", "--help", "-h"}) {
    const CommandLine line = parse_command_line({word});
    EXPECT_EQ(line.command, Command::help);
    EXPECT_NE(line.help.find("partition"), std::string::npos);
  }
  EXPECT_EQ(parse_command_line({"--version"}).command, Command::version);
  EXPECT_EQ(parse_command_line({"version"}).command, Command::version);
  for (const char* word : {"run", "plan", "partition", "bench", "inspect"}) {
    const CommandLine line = parse_command_line({word, "--help"});
    EXPECT_EQ(line.command, Command::help);
    EXPECT_EQ(line.help, parse_command_line({"help", word}).help);
    EXPECT_NE(line.help.find(std::string("fedpdpo ") + word), std::string::npos);
  }
  const std::string help = parse_command_line({"help", "run"}).help;
  for (const MethodInfo& method : methods()) EXPECT_NE(help.find("\n  " + method.name + " "), std::string::npos);
  EXPECT_NE(help.find("[0.3]"), std::string::npos) << "defaults are shown";
  EXPECT_EQ(parse_command_line({"bench", "--help"}).help.find("--rounds"), std::string::npos);
}

TEST(CommandLine, PlanAndPartitionNeedLess) {
  EXPECT_EQ(parse_command_line({"plan", "--model", "m", "--data", "a.h5"}).command, Command::plan);
  EXPECT_EQ(parse_command_line({"partition", "--data", "a.h5"}).command, Command::partition);
}

TEST(CommandLine, InspectTakesPaths) {
  EXPECT_EQ(parse_command_line({"inspect", "run.h5", "models/m"}).inspect_paths, (Words{"run.h5", "models/m"}));
}

TEST(CommandLine, TextIsQuotedForAShell) {
  EXPECT_EQ(parse_command_line({"inspect", "a b", "it's", "x=1"}).text, "fedpdpo inspect 'a b' 'it'\\''s' x=1");
}

struct Mistake {
  Words words;
  std::string line;
};

TEST(CommandLine, MistakesAreNamed) {
  const std::vector<Mistake> mistakes = {
      {{"rnu"}, "rnu: unknown subcommand (did you mean run?)"},
      {{"federate"}, "federate: unknown subcommand, see `fedpdpo help`"},
      {{"help", "pln"}, "pln: unknown subcommand (did you mean plan?)"},
      {{"--model", "m"}, "--model: expected a subcommand first, see `fedpdpo help`, found an option"},
      {{"run", "--data", "a.h5", "--out", "o.h5"}, "--model: expected DIR (`run` needs it), found nothing"},
      {{"run", "--model", "m", "--out", "o.h5"}, "--data: expected FILE... (`run` needs it), found nothing"},
      {{"run", "--model", "m", "--data", "a.h5"}, "--out: expected FILE.h5 (`run` needs it), found nothing"},
      {{"plan", "--data", "a.h5"}, "--model: expected DIR (`plan` needs it), found nothing"},
      {{"partition"}, "--data: expected FILE... (`partition` needs it), found nothing"},
      {{"inspect"}, "inspect: expected PATH..., found nothing"},
      {{"inspect", "--deep", "x"}, "--deep: unknown option of `inspect`"},
      {{"bench", "--rounds", "3"}, "--rounds: unknown option of `bench`"},
      {{"bench", "--tokens", "1/2"}, "--tokens: expected PROMPT/CHOSEN/REJECTED, three integers >= 1, found 1/2"},
      {{"bench", "--tokens", "1/2/3/4"}, "found 1/2/3/4"},
      {{"bench", "--clients", "1,0"}, "--clients: expected"},
      {{"bench", "--pairs", "1,,2"}, "--pairs: expected"},
      {{"bench", "--tokens", "1/0/3"}, "found 1/0/3"},
      {{"bench", "--shape", "s", "--model", "m"}, "--shape: needs no --model, found --model m"},
      {run_with({"--lr-sharde", "1"}), "--lr-sharde: unknown option of `run` (did you mean --lr-shared?)"},
      {run_with({"--lr-share=1"}), "--lr-share: unknown option of `run` (did you mean --lr-shared?)"},
      {run_with({"--lr_shared", "1"}), "--lr_shared: unknown option of `run` (did you mean --lr-shared?)"},
      {run_with({"--round", "1"}), "--round: unknown option of `run` (did you mean --rounds?)"},
      {run_with({"--zzzzzzzzzz", "1"}), "--zzzzzzzzzz: unknown option of `run`"},
      {run_with({"--shape", "s"}), "--shape: unknown option of `run`"},
      {run_with({"-j", "2"}), "--j: unknown option of `run`"},
      {run_with({"--seed", "1", "word"}), "word: expected an option, found a bare word"},
      {run_with({"--rounds"}), "--rounds: expected N, found nothing"},
      {run_with({"--rounds="}), "--rounds: expected N, found nothing"},
      {run_with({"--overwrite=on"}), "--overwrite: expected no value, found one"},
      {run_with({"--rounds", "1", "--rounds", "2"}), "--rounds: given twice"},
      {run_with({"--checkpoint-dir", ""}), "--checkpoint-dir: expected DIR, found nothing"},
      {run_with({"--data", "a.h5"}), "--data: expected each file once, found a.h5 twice"},
      {run_with({"--rounds", "-1"}), "--rounds: expected an integer >= 0, found -1"},
      {run_with({"--steps", "0"}), "--steps: expected an integer >= 1, found 0"},
      {run_with({"--batch", "8.5"}), "--batch: expected an integer >= 1, found 8.5"},
      {run_with({"--clients", "ten"}), "--clients: expected an integer in 1 to 1000000, found ten"},
      {run_with({"--clients", "99999999999999"}), "--clients: expected an integer in 1 to 1000000"},
      {run_with({"--seed", "-1"}), "--seed: expected an integer >= 0, found -1"},
      {run_with({"--min-train", "0"}), "--min-train: expected an integer >= 1, found 0"},
      {run_with({"--alpha", "0"}), "--alpha: expected a number > 0, found 0"},
      {run_with({"--alpha", "0.3x"}), "--alpha: expected a number > 0, found 0.3x"},
      {run_with({"--alpha", "nan"}), "--alpha: expected a number > 0, found nan"},
      {run_with({"--alpha", "inf"}), "--alpha: expected a number > 0, found inf"},
      {run_with({"--flip-clients", "1.5"}), "--flip-clients: expected a number in [0, 1], found 1.5"},
      {run_with({"--lora-dropout", "1"}), "--lora-dropout: expected a number in [0, 1), found 1"},
      {run_with({"--adam-beta1", "1"}), "--adam-beta1: expected a number in [0, 1), found 1"},
      {run_with({"--adam-beta2", "-0.1"}), "--adam-beta2: expected a number in [0, 1), found -0.1"},
      {run_with({"--adam-epsilon", "0"}), "--adam-epsilon: expected a number > 0, found 0"},
      {run_with({"--clip", "-1"}), "--clip: expected a number >= 0, found -1"},
      {run_with({"--lr-shared", "-1e-3"}), "--lr-shared: expected a number >= 0, found -1e-3"},
      {run_with({"--beta", "0"}), "--beta: expected a number > 0, found 0"},
      {run_with({"--participation", "0"}), "--participation: expected a number > 0, found 0"},
      {run_with({"--participation", "2.5"}), "--participation: expected a share in (0, 1] or a whole number"},
      {run_with({"--participation", "1e300"}), "--participation: expected a share in (0, 1] or a whole number"},
      {run_with({"--participation", "11"}), "--participation: expected at most the 10 clients, found 11"},
      {run_with({"--partition", "dirchlet"}),
       "--partition: expected dirichlet, iid or quantity, found dirchlet (did you mean dirichlet?)"},
      {run_with({"--head", "ful"}), "--head: expected full, lowrank or frozen, found ful (did you mean full?)"},
      {run_with({"--reward-head", "maybe"}), "--reward-head: expected on or off, found maybe"},
      {run_with({"--method", "fedpdp"}), "found fedpdp (did you mean fedpdpo?)"},
      {run_with({"--loss", "dop"}), "found dop (did you mean dpo?)"},
      {run_with({"--device", "gpu"}),
       "--device: expected cpu, cuda, cuda:INDEX or auto, found gpu (did you mean cpu?)"},
      {run_with({"--device", "cuda:x"}), "--device: expected cpu, cuda, cuda:INDEX or auto, found cuda:x"},
      {run_with({"--device", "cuda:"}), "--device: expected cpu, cuda, cuda:INDEX or auto, found cuda:"},
      {run_with({"--eval-splits", "test,tset"}),
       "--eval-splits: expected train, validation or test, found tset (did you mean test?)"},
      {run_with({"--eval-splits", "test,test"}), "--eval-splits: expected each item once, found test twice"},
      {run_with({"--lora-targets", "q_proj,,"}), "--lora-targets: expected a comma-separated list without empty items"},
      // contradictions
      {run_with({"--partition", "iid", "--alpha", "1"}),
       "--alpha: needs --partition dirichlet or quantity, found --partition iid"},
      {run_with({"--ranks-per-node", "2"}),
       "--ranks-per-node: needs --reduce-route hierarchical, found --reduce-route flat"},
      {run_with({"--head", "full", "--head-rank", "4"}), "--head-rank: needs --head lowrank, found --head full"},
      {run_with({"--bottleneck", "0", "--bottleneck-kind", "gated"}),
       "--bottleneck-kind: needs --bottleneck above 0, found --bottleneck 0"},
      {run_with({"--reward-head", "off", "--lambda", "1"}),
       "--lambda: needs --reward-head on, found --reward-head off"},
      {run_with({"--reward-head", "off", "--mu", "1"}), "--mu: needs --reward-head on, found --reward-head off"},
      {run_with({"--reward-head", "off", "--reward-pool", "mean"}), "--reward-pool: needs --reward-head on"},
      {run_with({"--reward-head", "off", "--reward-gradient", "none"}), "--reward-gradient: needs --reward-head on"},
      {run_with({"--lora-rank", "0", "--head", "full", "--lora-alpha", "4"}),
       "--lora-alpha: needs --lora-rank above 0, found --lora-rank 0"},
      {run_with({"--lora-rank", "0", "--head", "full", "--lora-targets", "q_proj"}), "--lora-targets: needs"},
      {run_with({"--lora-rank", "0", "--head", "full", "--lora-dropout", "0.1"}), "--lora-dropout: needs"},
      {run_with({"--lora-rank", "0", "--head", "full", "--lora-first-layer", "1"}), "--lora-first-layer: needs"},
      {run_with({"--lora-rank", "0", "--head", "frozen", "--bottleneck", "0", "--reward-head", "off"}),
       "--lora-rank: expected something to train: a LoRA rank above 0 or a private module, found none"},
      {run_with({"--loss", "reward", "--reward-head", "off"}), "--loss reward: needs --reward-head on"},
      {run_with({"--loss", "simpo", "--reward-head", "on"}), "--loss simpo: has no margin that a reward could join"},
      {run_with({"--loss", "sft", "--reward-head", "on"}), "--loss sft: has no margin that a reward could join"},
      {run_with({"--loss", "dpo", "--label-smoothing", "0.1"}),
       "--label-smoothing: needs --loss cdpo or robust, found --loss dpo"},
      {run_with({"--loss", "reward", "--reward-head", "on", "--mu", "1"}),
       "--mu: needs a loss with an implicit margin, found --loss reward"},
      {run_with({"--loss", "dpo", "--simpo-gamma", "0.1"}), "--simpo-gamma: needs --loss simpo, found --loss dpo"},
      {run_with({"--loss", "kto", "--label-smoothing", "0.1"}),
       "--label-smoothing: needs --loss cdpo or robust, found --loss kto"},
      {run_with({"--loss", "ipo", "--kto-chosen-weight", "1"}),
       "--kto-chosen-weight: needs --loss kto, found --loss ipo"},
      {run_with({"--kto-rejected-weight", "1"}), "--kto-rejected-weight: needs --loss kto, found --loss dpo"},
      {run_with({"--loss", "kto", "--kto-rejected-weight", "-1"}),
       "--kto-rejected-weight: expected a number >= 0, found -1"},
      {run_with({"--loss", "kto", "--kto-chosen-weight", "0", "--kto-rejected-weight", "0"}),
       "--kto-chosen-weight: expected above 0, or --kto-rejected-weight above 0, found 0 and 0"},
      {run_with({"--loss", "kto", "--reward-head", "on", "--mu", "0"}),
       "--mu: needs a weight above 0, from which alone --loss kto trains the reward head, found 0"},
      {run_with({"--loss", "ipo", "--reward-head", "on", "--mu", "0"}), "from which alone --loss ipo trains"},
      {run_with({"--loss", "sft", "--reward-head", "off", "--reference-free", "on"}),
       "--reference-free: needs a loss with a reference, found --loss sft"},
      {run_with({"--loss", "reward", "--reward-head", "on", "--reference-free", "on"}),
       "--reference-free: needs a loss with a reference, found --loss reward"},
      {run_with({"--loss", "ipo", "--length-normalize", "on"}),
       "--length-normalize: needs --loss dpo, cdpo, robust or hinge, found --loss ipo, which always is so"},
      {run_with({"--loss", "kto", "--length-normalize", "on"}),
       "--length-normalize: needs --loss dpo, cdpo, robust or hinge, found --loss kto"},
      {run_with({"--method", "fedavg", "--prox-mu", "1"}), "--prox-mu: needs --method fedprox, found --method fedavg"},
      {run_with({"--schedule", "joint", "--private-share", "0.2"}),
       "--private-share: needs --schedule alternate, found --schedule joint"},
      {run_with({"--rounds", "5", "--warmup-rounds", "5"}), "--warmup-rounds: expected fewer than --rounds 5, found 5"},
      {{"run", "--model", "m", "--data", "a.h5", "--out", "./a.h5", "--overwrite"},
       "--out: expected a file of its own, found one of --data, ./a.h5"},
      {run_with({"--config", "no/such.cfg"}), "no/such.cfg: --config: expected a readable file, found no such file"},
  };
  for (const Mistake& mistake : mistakes) EXPECT_INPUT_ERROR(parse_command_line(mistake.words), mistake.line);
}

TEST(CommandLine, MistakesInConfigFilesNameFileAndLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\nrouns = 3\n", ":2: rouns: unknown option (did you mean rounds?)"},
      {"config = other.cfg\n", ":1: config: unknown option"},
      {"--rounds = 3\n", ":1: --rounds: unknown option (did you mean rounds?)"},
      {"rounds 3\n", ":1: expected key = value, found rounds 3"},
      {"[federation\n", ":1: expected [section], found [federation"},
      {"rounds = \n", ":1: rounds: expected N, found nothing"},
      {"overwrite =\n", ":1: overwrite: expected on or off, found nothing"},
      {"overwrite = maybe\n", ":1: overwrite: expected on or off, found maybe"},
      {"rounds = 3\n# more\nrounds = 4\n", ":3: rounds: given twice, first at "},
      {"data = \"a.h5\n", ":1: data: expected a closing \", found \"a.h5"},
      {"alpha = -1\n", ":1: alpha: expected a number > 0, found -1"},
      {"partition = iid\nalpha = 1\n", ":2: alpha: needs --partition dirichlet or quantity, found --partition iid"},
      {"method = fedagv\n", "found fedagv (did you mean fedavg?)"},
  };
  const test::TemporaryFolder folder;
  const std::string path = (folder / "x.cfg").string();
  for (const auto& [text, line] : cases) {
    test::write_text(path, text);
    EXPECT_INPUT_ERROR(parse_command_line(run_with({"--config", path})), line);
  }
  EXPECT_INPUT_ERROR(parse_command_line(run_with({"--config", folder.path().string()})), "expected a readable file");
}

TEST(CommandLine, CommittedConfigFilesAreSoundForEveryMethod) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(FEDPDPO_SOURCE_DIR) / "jobs")) {
    if (entry.path().extension() != ".cfg") continue;
    ++count;
    for (const MethodInfo& method : methods()) {
      EXPECT_NO_THROW(
          parse_command_line({"run", "--config", entry.path().string(), "--method", method.name, "--out", "runs/o.h5"}))
          << entry.path() << " " << method.name;
    }
  }
  EXPECT_GE(count, 3);
}

TEST(CommandLine, NearestWord) {
  const Words words = {"lr-shared", "lr-private", "lambda", "rounds", "bottleneck"};
  EXPECT_EQ(nearest("lr-shraed", words), "lr-shared");
  EXPECT_EQ(nearest("lamdba", words), "lambda");
  EXPECT_EQ(nearest("lr", words), "lr-shared");
  EXPECT_EQ(nearest("bottleneck-width", words), "bottleneck");
  EXPECT_EQ(nearest("x", words), "");
  EXPECT_EQ(nearest("entirely-else", words), "");
  EXPECT_EQ(nearest("rounds", {}), "");
}

}  // namespace
}  // namespace fedpdpo
