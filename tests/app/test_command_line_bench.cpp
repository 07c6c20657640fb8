// bench's own options.
#include <gtest/gtest.h>

#include "fedpdpo/app/command_line.hpp"

namespace fedpdpo {
namespace {

TEST(CommandLine, Bench) {
  const CommandLine line =
      parse_command_line({"bench",   "--shape", "tiny",      "--tokens",  "1/22/333",    "--clients", "1,8",
                          "--pairs", "3,5",     "--repeats", "4",         "--warmup",    "6",         "--most-seconds",
                          "2.5",     "--json",  "f.json",    "--profile", "--lora-rank", "2"});
  EXPECT_EQ(line.bench.shape, "tiny");
  EXPECT_EQ(line.bench.tokens, "1/22/333");
  EXPECT_EQ(line.bench.clients, (std::vector<int>{1, 8}));
  EXPECT_EQ(line.bench.pairs, (std::vector<int>{3, 5}));
  EXPECT_EQ(line.bench.repeats, 4);
  EXPECT_EQ(line.bench.warmup, 6);
  EXPECT_EQ(line.bench.most_seconds, 2.5);
  EXPECT_EQ(line.bench.json, "f.json");
  EXPECT_TRUE(line.bench.profile);
  EXPECT_FALSE(line.bench.count);
  EXPECT_TRUE(parse_command_line({"bench", "--count"}).bench.count);
  EXPECT_FALSE(line.bench.cohort_given || line.bench.micro_rows_given);
  EXPECT_EQ(line.run.adapter.lora_rank, 2);
  EXPECT_EQ(parse_command_line({"bench", "--model", "m"}).bench.shape, "");
  EXPECT_TRUE(parse_command_line({"bench", "--cohort", "1"}).bench.cohort_given);
  EXPECT_TRUE(parse_command_line({"bench", "--micro-rows", "9"}).bench.micro_rows_given);
}

}  // namespace
}  // namespace fedpdpo
