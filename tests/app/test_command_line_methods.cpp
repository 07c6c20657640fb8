// What does not go together: every refusal names the options and the reason.
#include <gtest/gtest.h>

#include "fedpdpo/app/command_line.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using Words = std::vector<std::string>;

Words run_with(const std::string& method, const Words& more) {
  Words words = {"run", "--model", "m", "--data", "a.h5", "--out", "o.h5", "--method", method};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

struct Refusal {
  std::string method;
  Words options;
  std::string line;
};

TEST(CommandLineMethods, SenselessCombinationsAreRefusedWithTheReason) {
  const std::vector<Refusal> refusals = {
      {"local", {"--groups", "agreement"}, "--groups agreement: not with --method local: it shares nothing"},
      {"centralized", {"--groups", "domain"}, "--groups domain: not with --method centralized: it trains one model"},
      {"flora", {"--groups", "agreement"}, "--method flora: its LoRA starts anew in every round"},
      {"fedex-lora", {"--groups", "agreement"}, "its clients trained on their group's frozen weights"},
      {"scaffold",
       {"--groups", "agreement"},
       "--method scaffold: its server state belongs to the clients of one group"},
      {"fedavg", {"--cluster-labels", "0,1"}, "--cluster-labels: needs --groups clusters:K, found --groups all"},
      {"fedavg", {"--groups", "clusters:2", "--cluster-labels", "0,2"}, "numbers below the 2 of --groups, found 2"},
      {"fedavg",
       {"--groups", "clusters:9", "--new-clients", "2"},
       "at most as many clusters as the 8 clients that train"},
      {"fedavg", {"--agreement-errors", "2"}, "--agreement-errors: needs --groups agreement, found --groups all"},

      {"local", {"--personal-lora", "ditto"}, "--personal-lora ditto: not with --method local: it shares nothing"},
      {"private-only", {"--personal-lora", "ditto"}, "not with --method private-only: it shares nothing"},
      {"centralized", {"--personal-lora", "apfl"}, "not with --method centralized: it trains one model"},
      {"fedex-lora", {"--personal-lora", "feddpa"}, "its server moves the frozen weights under the personal LoRA"},
      {"ditto", {"--lora-rank", "0", "--head", "full"}, "--personal-lora ditto: needs --lora-rank above 0, found 0"},
      {"ditto", {"--personal-mix", "0.1"}, "--personal-mix: needs --personal-lora apfl, found --personal-lora ditto"},
      {"apfl", {"--personal-prox", "1"}, "--personal-prox: needs --personal-lora ditto, found --personal-lora apfl"},
      {"fedavg",
       {"--personal-samples", "4"},
       "--personal-samples: needs --personal-lora feddpa, found --personal-lora none"},

      {"fedavg", {"--lora-ranks", "4,8"}, "--lora-ranks: not with --method fedavg: its server averages factors"},
      {"flora", {"--lora-ranks", "4,32"}, "--lora-ranks: expected ranks up to the 8 of --lora-rank, found 32"},
      {"flora", {"--lora-ranks", "4,8", "--groups", "clusters:2"}, "updates of different ranks do not compare"},

      {"local", {"--dp-clip", "1"}, "--dp-clip: not with --method local: it shares nothing"},
      {"centralized", {"--dp-clip", "1"}, "--dp-clip: not with --method centralized"},
      {"scaffold", {"--dp-clip", "1"}, "it sends more than the update, without clipping or noise"},
      {"flora", {"--dp-clip", "1"}, "its server adds the clients' products up without clipping or noise"},
      {"fedconcord", {"--dp-clip", "1"}, "--dp-clip: not with --method fedconcord: it averages a part over all groups"},
      {"fedavg",
       {"--dp-clip", "1", "--groups", "clusters:2"},
       "--dp-clip: not with --groups clusters, found from updates"},
      {"fedavg", {"--dp-noise", "1"}, "--dp-noise: needs --dp-clip above 0, found --dp-clip 0"},
      {"fedavg", {"--dp-delta", "1e-6"}, "--dp-delta: needs --dp-clip above 0, found --dp-clip 0"},

      {"local", {"--compress", "int8"}, "--compress int8: not with --method local: it shares nothing"},
      {"flora", {"--compress", "int8"}, "--compress int8: not with --method flora: its LoRA starts anew"},
      {"rolora", {"--compress", "topk"}, "--compress topk: not with --method rolora: it sends A and B in turn"},
      {"fedavg", {"--compress-share", "0.5"}, "--compress-share: needs --compress topk, found --compress none"},
      {"fedavg", {"--compress", "int8", "--compress-share", "0.5"}, "needs --compress topk, found --compress int8"},
      {"fedavg", {"--error-feedback", "off"}, "--error-feedback: needs --compress int8 or topk, found --compress none"},

      {"centralized", {"--new-clients", "2"}, "--new-clients: not with --method centralized: it trains one model"},
      {"local", {"--new-clients", "2"}, "--new-clients: not with --method local: it shares nothing"},
      {"fedavg", {"--new-clients", "10"}, "--new-clients: expected fewer than the 10 clients, found 10"},
      {"fedavg", {"--new-client-steps", "3"}, "--new-client-steps: needs --new-clients above 0, found --new-clients 0"},

      {"fedper", {"--head", "frozen"}, "which --method fedper keeps private (without it it is fedavg), found frozen"},
      {"fedrep", {"--head", "frozen"}, "which --method fedrep keeps private (without it it is fedavg), found frozen"},
      {"private-only", {"--head", "frozen", "--bottleneck", "0", "--reward-head", "off"}, "expected a private module"},
  };
  for (const Refusal& refusal : refusals)
    EXPECT_INPUT_ERROR(parse_command_line(run_with(refusal.method, refusal.options)), refusal.line);
}

TEST(CommandLineMethods, PrivateModulesGoWithEveryAggregatorThatSharesLora) {
  for (const MethodInfo& method : methods()) {
    const RunOptions run =
        parse_command_line(run_with(method.name, {"--head", "full", "--bottleneck", "4", "--reward-head", "on"})).run;
    EXPECT_EQ(run.adapter.bottleneck, 4) << method.name;
  }
  const std::vector<std::string> with_personal_lora = {"fedavg",   "fedprox",    "scaffold", "fedavgm", "fedadam",
                                                       "ffa-lora", "fedsa-lora", "rolora",   "fedpdpo", "fedconcord"};
  for (const std::string& method : with_personal_lora)
    for (const char* kind : {"ditto", "apfl", "feddpa"})
      EXPECT_NO_THROW(parse_command_line(run_with(method, {"--personal-lora", kind}))) << method << " " << kind;
}

TEST(CommandLineMethods, EverythingThatAverageGroupsKnow) {
  for (const char* groups : {"all", "domain", "clusters:2", "agreement"}) {
    const RunOptions run = parse_command_line(run_with("fedavg", {"--data", "b.h5", "--groups", groups})).run;
    EXPECT_EQ(describe(run).at("groups"), groups);
  }
  EXPECT_INPUT_ERROR(parse_command_line(run_with("fedavg", {"--groups", "clusters"})), "--groups: expected");
  EXPECT_INPUT_ERROR(parse_command_line(run_with("fedavg", {"--groups", "clusters:0"})), "--groups: expected");
  EXPECT_INPUT_ERROR(parse_command_line(run_with("fedavg", {"--groups", "cluster:2"})), "--groups: expected");
}

}  // namespace
}  // namespace fedpdpo
