// An option that is accepted has an effect, or a line says that it has none; and what words of other programs mean.
#include <gtest/gtest.h>

#include "fedpdpo/app/command_line.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using Words = std::vector<std::string>;

Words command_with(const std::string& command, const Words& more) {
  Words words = {command, "--model", "m", "--data", "a.h5"};
  if (command == "run") words.insert(words.end(), {"--out", "o.h5"});
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

Words run_with(const Words& more) { return command_with("run", more); }

std::string warnings(const Words& words) {
  std::string text;
  for (const std::string& line : parse_command_line(words).warnings) text += line + "\n";
  return text;
}

TEST(CommandLineEffects, RefitNeedsSomethingToTrain) {
  const std::string line =
      "--refit: needs a private module (--head, --bottleneck, --reward-head, --personal-lora), "
      "which it trains, or --method fedavg-ft, found none with --method ";
  // ffa-lora's A is its own, but frozen.
  for (const char* method : {"fedavg", "scaffold", "centralized", "ffa-lora", "rolora", "flora"}) {
    EXPECT_INPUT_ERROR(parse_command_line(run_with({"--method", method, "--refit", "4"})), line + method);
    EXPECT_NO_THROW(parse_command_line(run_with({"--method", method, "--refit", "0"})));
    EXPECT_NO_THROW(parse_command_line(run_with({"--method", method, "--refit", "4", "--head", "full"})));
  }
  // What local and fedsa-lora keep of LoRA is the client's own.
  for (const char* method : {"fedavg-ft", "fedpdpo", "ditto", "local", "fedsa-lora", "private-only"})
    EXPECT_EQ(parse_command_line(run_with({"--method", method, "--refit", "4"})).run.refit, 4) << method;
}

TEST(CommandLineEffects, MethodsDefaultsAreNoContradiction) {
  for (const MethodInfo& method : methods()) {
    const Words words = run_with({"--method", method.name});
    EXPECT_EQ(warnings(words), "") << method.name;
  }
}

TEST(CommandLineEffects, RatesAndSchedulesThatTrainNothingAreSaid) {
  const auto said = [](const std::string& method, Words more) {
    more.insert(more.begin(), {"--method", method});
    return warnings(run_with(more));
  };
  EXPECT_EQ(said("fedavg", {"--lr-private", "0.1"}),
            "--lr-private: has no effect with --method fedavg: there is no private module (--head, --bottleneck, "
            "--reward-head, --personal-lora)\n");
  for (const char* method : {"fedpdpo", "ditto", "private-only"})
    EXPECT_EQ(said(method, {"--lr-private", "0.1"}), "") << method;
  EXPECT_EQ(said("centralized", {"--lr-private", "0.1", "--bottleneck", "4"}), "");

  EXPECT_EQ(said("private-only", {"--lr-shared", "0.1"}),
            "--lr-shared: has no effect with --method private-only: no LoRA is trained\n");
  EXPECT_NE(said("fedpdpo", {"--lr-shared", "0.1", "--lora-rank", "0"}), "");
  for (const char* method : {"local", "ffa-lora", "rolora", "fedsa-lora", "ditto"})
    EXPECT_EQ(said(method, {"--lr-shared", "0.1"}), "") << method;

  EXPECT_EQ(said("fedavg", {"--schedule", "alternate"}),
            "--schedule: has no effect with --method fedavg: alternate takes a private module (--head, --bottleneck, "
            "--reward-head)\n");
  EXPECT_EQ(said("private-only", {"--schedule", "alternate"}),
            "--schedule: has no effect with --method private-only: alternate takes a LoRA that is trained\n");
  EXPECT_EQ(said("fedprox", {"--schedule", "alternate", "--head", "lowrank"}), "");

  EXPECT_EQ(said("centralized", {"--participation", "3"}),
            "--participation: has no effect with --method centralized: one model is trained on the pooled pairs\n");
  EXPECT_EQ(said("centralized", {"--participation", "1"}), "");
}

TEST(CommandLineEffects, ConfigFilesAreSharedByMethods) {
  const test::TemporaryFolder folder;
  test::write_text(folder / "x.cfg", "lr-shared = 0.1\nlr-private = 0.1\nschedule = alternate\nparticipation = 3\n");
  for (const MethodInfo& method : methods())
    EXPECT_EQ(warnings(run_with({"--config", (folder / "x.cfg").string(), "--method", method.name})), "");
}

TEST(CommandLineEffects, SharesAndNoiseThatAreNone) {
  EXPECT_EQ(warnings(run_with({"--flip-clients", "0.04"})),
            "--flip-clients: has no effect: a share of 0.04 of 10 clients is none\n");
  EXPECT_EQ(warnings(command_with("partition", {"--flip-clients", "0.4", "--clients", "1"})),
            "--flip-clients: has no effect: a share of 0.4 of 1 client is none\n");
  EXPECT_EQ(warnings(run_with({"--flip-clients", "0.05"})), "");
  EXPECT_EQ(warnings(run_with({"--dp-clip", "1"})),
            "--dp-clip: without --dp-noise updates are clipped, but no epsilon holds\n");
  EXPECT_EQ(warnings(run_with({"--dp-clip", "1", "--dp-noise", "0.5"})), "");
}

TEST(CommandLineEffects, WhatNoMethodUsesIsRefused) {
  struct Mistake {
    Words words;
    std::string line;
  };
  const std::vector<Mistake> mistakes = {
      {run_with({"--groups", "domain"}),
       "--groups: needs several files in --data, one a domain, for domain, found one"},
      {run_with({"--max-train", "4", "--min-train", "5"}),
       "--max-train: expected at least the 5 of --min-train, found 4"},
      {run_with({"--graphs", "on"}), "--graphs: needs a CUDA device for on, found --device cpu"},
      {run_with({"--graphs", "on", "--device", "cpu"}), "--graphs: needs a CUDA device for on, found --device cpu"},
      {{"bench", "--graphs", "on"}, "--graphs: needs a CUDA device for on, found --device cpu"},
      {run_with({"--aggregation", "nccl"}), "--aggregation: needs a CUDA device for nccl, found --device cpu"},
      {run_with({"--groups", "clusters:2", "--cluster-labels", "0,1,1"}),
       "--cluster-labels: expected 10 numbers, one a client, found 3"},
      {command_with("partition", {"--out", "o.h5"}),
       "--out: expected none: `partition` prints, and writes nothing, found o.h5"},
  };
  for (const Mistake& mistake : mistakes) EXPECT_INPUT_ERROR(parse_command_line(mistake.words), mistake.line);
  EXPECT_NO_THROW(parse_command_line(run_with({"--groups", "domain", "--data", "b.h5"})));
  EXPECT_NO_THROW(parse_command_line(run_with({"--max-train", "4"}))) << "the default of --min-train gives way";
  EXPECT_NO_THROW(parse_command_line(run_with({"--graphs", "on", "--device", "auto"})));
  EXPECT_NO_THROW(parse_command_line(run_with({"--aggregation", "nccl", "--device", "cuda"})));
  EXPECT_NO_THROW(parse_command_line(command_with("plan", {"--aggregation", "nccl", "--graphs", "on"})))
      << "a run elsewhere is planned";
}

TEST(CommandLineEffects, TheCommandLineMayOverruleAConfigFile) {
  const test::TemporaryFolder folder;
  const std::string config = (folder / "x.cfg").string();
  test::write_text(config, "min-train = 8\ngraphs = on\ndevice = cuda\nout = o.h5\nlr-shared = 0.1\n");
  EXPECT_NO_THROW(parse_command_line(run_with({"--config", config, "--max-train", "4", "--device", "cpu"})));
  EXPECT_NO_THROW(parse_command_line(command_with("partition", {"--config", config})));
  test::write_text(config, "graphs = on\n");
  EXPECT_INPUT_ERROR(parse_command_line(run_with({"--config", config})), ":1: graphs: needs a CUDA device for on");
  test::write_text(config, "min-train = 8\nmax-train = 7\n");
  EXPECT_INPUT_ERROR(parse_command_line(run_with({"--config", config})),
                     ":2: max-train: expected at least the 8 of --min-train, found 7");
}

TEST(CommandLineEffects, NamesOfOtherProgramsAreUnderstood) {
  const std::vector<std::pair<std::string, std::string>> names = {
      {"epochs", "--steps: local steps of a round, there are no local epochs?)"},
      {"local_epochs", "--steps: local steps of a round"},
      {"num-rounds", "--rounds?)"},
      {"num-clients", "--clients?)"},
      {"learning-rate", "--lr-shared of LoRA, or lr-private of the private modules?)"},
      {"lr", "--lr-shared of LoRA, or lr-private"},
      {"batch_size", "--batch?)"},
      {"output-dir", "--out: the run file, *.h5?)"},
      {"alpha-lora", "--lora-alpha?)"},
  };
  for (const auto& [name, hint] : names)
    EXPECT_INPUT_ERROR(parse_command_line(run_with({"--" + name, "1"})),
                       "--" + name + ": unknown option of `run` (did you mean " + hint);
  EXPECT_INPUT_ERROR(parse_command_line({"bench", "--batch-size", "1"}), "--batch-size: unknown option of `bench`");
  const test::TemporaryFolder folder;
  test::write_text(folder / "x.cfg", "num-rounds = 3\n");
  EXPECT_INPUT_ERROR(parse_command_line(run_with({"--config", (folder / "x.cfg").string()})),
                     ":1: num-rounds: unknown option (did you mean rounds?)");
}

TEST(CommandLineEffects, SwitchesInOtherWords) {
  const test::TemporaryFolder folder;
  const std::string config = (folder / "x.cfg").string();
  for (const auto& [word, value] : std::map<std::string, bool>{
           {"on", true}, {"yes", true}, {"true", true}, {"off", false}, {"no", false}, {"false", false}}) {
    test::write_text(config, "overwrite = " + word + "\nreward-head = " + word + "\n");
    const RunOptions run = parse_command_line(run_with({"--config", config})).run;
    EXPECT_EQ(run.overwrite, value) << word;
    EXPECT_EQ(run.adapter.reward_head, value) << word;
  }
}

TEST(CommandLineEffects, DataThatIsNoPairFile) {
  for (const char* file : {"own.jsonl", "own.parquet", "own.csv", "own.jsonl.gz"})
    EXPECT_INPUT_ERROR(
        parse_command_line({"partition", "--data", file}),
        std::string("--data: expected pair files, *.h5, which data_prep/prepare.py makes of text, found ") + file);
  EXPECT_INPUT_ERROR(parse_command_line({"partition", "--data", "a.h5,b.h5"}),
                     "--data: expected files separated by blanks, found a.h5,b.h5");
  const test::TemporaryFolder folder;
  const std::string odd = (folder / "a,b.h5").string();
  test::write_text(odd, "a file whose name has a comma");
  EXPECT_NO_THROW(parse_command_line({"partition", "--data", odd}));
}

}  // namespace
}  // namespace fedpdpo
