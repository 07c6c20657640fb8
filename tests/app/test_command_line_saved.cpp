// The command line of `export` and `eval`.
#include <gtest/gtest.h>

#include "fedpdpo/app/command_line.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using Words = std::vector<std::string>;

Words with(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

const Words plain_export{"export", "--checkpoint", "r.ckpt", "--client", "3", "--out", "models/three"};
const Words plain_eval{"eval", "--model", "m", "--data", "a.h5", "b.h5"};

TEST(CommandLineOfSavedModels, Export) {
  const CommandLine line = parse_command_line(plain_export);
  EXPECT_EQ(line.command, Command::export_models);
  EXPECT_EQ(line.saved.checkpoint, "r.ckpt");
  EXPECT_EQ(line.saved.client, "3");
  EXPECT_EQ(line.run.out, "models/three");
  EXPECT_EQ(line.run.model, "");
  EXPECT_FALSE(line.saved.merge || line.run.overwrite);
  const CommandLine other = parse_command_line(with(plain_export, {"--merge", "--model", "m", "--overwrite"}));
  EXPECT_TRUE(other.saved.merge && other.run.overwrite);
  EXPECT_EQ(other.run.model, "m");
  for (const char* client : {"all", "shared", "0", "1234567"})
    EXPECT_EQ(parse_command_line({"export", "--checkpoint", "c", "--out", "o", "--client", client}).saved.client,
              client);
}

TEST(CommandLineOfSavedModels, Evaluation) {
  const CommandLine line = parse_command_line(plain_eval);
  EXPECT_EQ(line.command, Command::evaluate);
  EXPECT_EQ(line.run.data, (std::vector<std::filesystem::path>{"a.h5", "b.h5"}));
  EXPECT_EQ(line.saved.split, Split::test);
  EXPECT_EQ(line.saved.client, "all");
  EXPECT_TRUE(line.saved.overrides.empty() && line.run.out.empty() && line.saved.json.empty());
  const CommandLine other = parse_command_line(
      with(plain_eval, {"--checkpoint", "c", "--client", "shared", "--split", "train", "--reference", "r", "--json",
                        "-", "--out", "e.h5", "--beta", "0.2", "--loss", "ipo", "--precision", "bf16"}));
  EXPECT_EQ(other.saved.checkpoint, "c");
  EXPECT_EQ(other.saved.client, "shared");
  EXPECT_EQ(other.saved.split, Split::train);
  EXPECT_EQ(other.saved.reference, "r");
  EXPECT_EQ(other.saved.json, "-");
  EXPECT_TRUE(other.bench.json.empty());
  EXPECT_EQ(other.run.out, "e.h5");
  EXPECT_EQ(other.saved.overrides,
            (std::map<std::string, std::string>{{"beta", "0.2"}, {"loss", "ipo"}, {"precision", "bf16"}}));
  EXPECT_EQ(parse_command_line(with(plain_eval, {"--adapter", "p"})).saved.adapter, "p");
  EXPECT_NO_THROW(parse_command_line({"eval", "--data", "a.h5", "--checkpoint", "c"}));
}

TEST(CommandLineOfSavedModels, Help) {
  for (const char* word : {"export", "eval"}) {
    const CommandLine line = parse_command_line({word, "--help"});
    EXPECT_EQ(line.command, Command::help);
    EXPECT_EQ(line.help, parse_command_line({"help", word}).help);
    EXPECT_NE(line.help.find("--checkpoint DIR"), std::string::npos);
    EXPECT_NE(line.help.find("`after`"), std::string::npos) << "which evaluation point a client's model is";
    EXPECT_EQ(line.help.find("--rounds"), std::string::npos);
    EXPECT_NE(parse_command_line({"help"}).help.find(std::string("\n  ") + word + " "), std::string::npos);
  }
  EXPECT_NE(parse_command_line({"help", "export"}).help.find("--out DIR"), std::string::npos);
  EXPECT_NE(parse_command_line({"help", "eval"}).help.find("--out FILE.h5"), std::string::npos);
  EXPECT_NE(parse_command_line({"help", "run"}).help.find("the last round's always"), std::string::npos);
  for (const char* option : {"--checkpoint DIR", "--client ", "--merge", "--adapter", "--split "})
    EXPECT_EQ(parse_command_line({"help", "run"}).help.find(option), std::string::npos) << option;
}

TEST(CommandLineOfSavedModels, Mistakes) {
  const std::vector<std::pair<Words, std::string>> mistakes = {
      {{"exprot"}, "exprot: unknown subcommand (did you mean export?)"},
      {{"evla"}, "evla: unknown subcommand (did you mean eval?)"},
      {{"export"}, "--checkpoint: expected DIR (`export` needs it), found nothing"},
      {{"export", "--checkpoint", "c"}, "--client: expected K|all|shared (`export` needs it), found nothing"},
      {{"export", "--checkpoint", "c", "--client", "all"}, "--out: expected DIR (`export` needs it), found nothing"},
      {with(plain_export, {"--chekpoint", "c"}),
       "--chekpoint: unknown option of `export` (did you mean --checkpoint?)"},
      {with(plain_export, {"--adapter", "c"}), "--adapter: unknown option of `export`"},
      {with(plain_export, {"--rounds", "3"}), "--rounds: unknown option of `export`"},
      {{"export", "--client", "al"},
       "--client: expected a client's number, all or shared, found al (did you mean all?)"},
      {{"export", "--client", "-1"}, "--client: expected a client's number, all or shared, found -1"},
      {{"export", "--client", "99999999"}, "--client: expected a client's number, all or shared, found 99999999"},
      {with(plain_export, {"--client", "4"}), "--client: given twice"},
      {{"eval", "--model", "m"}, "--data: expected FILE... (`eval` needs it), found nothing"},
      {{"eval", "--data", "a.h5"}, "--model: expected DIR (`eval` needs it), found nothing"},
      {with(plain_eval, {"--adapter", "p", "--checkpoint", "c"}),
       "--adapter: needs no --checkpoint, found --checkpoint c"},
      {with(plain_eval, {"--client", "1"}), "--client: needs --checkpoint, found none"},
      {with(plain_eval, {"--split", "tset"}), "--split: expected train, validation or test, found tset"},
      {with(plain_eval, {"--merge"}), "--merge: unknown option of `eval`"},
      {with(plain_eval, {"--beta", "0"}), "--beta: expected a number > 0, found 0"},
      {{"run", "--checkpoint", "c"}, "--checkpoint: unknown option of `run`"},
      {{"bench", "--adapter", "c"}, "--adapter: unknown option of `bench`"},
  };
  for (const auto& [words, line] : mistakes) EXPECT_INPUT_ERROR(parse_command_line(words), line);
}

}  // namespace
}  // namespace fedpdpo
