// Reference log-probabilities: computed once, kept in a file named by content, recomputed where that file is not sound.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <optional>

#include "fedpdpo/fed/hosted_clients.hpp"
#include "fedpdpo/fed/reference.hpp"
#include "support/test_support.hpp"
#include "train/trainer_kit.hpp"

namespace fedpdpo::test {
namespace {

/// 60 pairs of 14 to 73 tokens: three chunks of at most 1024 rows.
constexpr std::size_t num_pairs = 60;

struct Bench {
  GoldenModel model{"tiny_llama"};
  PairSet pairs = random_pairs(num_pairs, 8);
  TemporaryFolder cache;
  Communicator world = Communicator::world();
  ReferenceReport report;

  /// Clients 0 and 1 (flipped) own the pairs of [begin, end) in turn.
  Partition partition(std::uint32_t begin = 0, std::uint32_t end = num_pairs) const {
    Partition p;
    p.clients.resize(2);
    p.clients[1].flipped = true;
    for (std::uint32_t i = begin; i < end; ++i) p.clients[i % 2].pairs[i % 3].push_back({0, i});
    return p;
  }
  ReferenceLogProbs get(const std::optional<ReferenceRequest>& request = {}, std::optional<Partition> p = {}) {
    report = {};
    return reference_log_probs(world, *model.backend, model.folder.config(), model.weights, pairs, p ? *p : partition(),
                               request.value_or(this->request()), report);
  }
  ReferenceRequest request() const { return {"model", "cpu-fp32", cache.path()}; }
  std::filesystem::path only_file() const {
    const std::vector<std::string> names = cache.contents();
    if (names.size() != 1) throw std::runtime_error("expected one file in the cache");
    return cache / names[0];
  }
};

void expect_same(const ReferenceLogProbs& a, const ReferenceLogProbs& b) {
  EXPECT_EQ(a.chosen, b.chosen);
  EXPECT_EQ(a.rejected, b.rejected);
}

TEST(Reference, IsThePretrainedModels) {
  Bench bench;
  const ReferenceLogProbs found = bench.get(ReferenceRequest{"model", "cpu-fp32", {}});
  const std::vector<ClientPair> expected = with_reference(bench.model, bench.pairs);
  ASSERT_EQ(found.chosen.size(), 1u);
  for (std::size_t i = 0; i < num_pairs; ++i) {
    EXPECT_EQ(found.chosen[0][i], expected[i].reference_chosen) << i;  // bit for bit: rows do not see their batch
    EXPECT_EQ(found.rejected[0][i], expected[i].reference_rejected) << i;
    EXPECT_LT(found.chosen[0][i], -1) << i;
  }
  EXPECT_EQ(bench.report.num_computed, num_pairs);
  EXPECT_TRUE(bench.cache.contents().empty()) << "without a cache nothing is written";
}

TEST(Reference, SecondCallReuses) {
  Bench bench;
  const ReferenceLogProbs without = bench.get(ReferenceRequest{"model", "cpu-fp32", {}});
  const ReferenceLogProbs first = bench.get();
  EXPECT_EQ(bench.report.num_computed, num_pairs);
  EXPECT_EQ(bench.report.num_reused, 0u);
  const std::string bytes = read_text(bench.only_file());
  const ReferenceLogProbs second = bench.get();
  EXPECT_EQ(bench.report.num_computed, 0u);
  EXPECT_EQ(bench.report.num_reused, num_pairs);
  EXPECT_EQ(read_text(bench.only_file()), bytes);
  expect_same(first, without);
  expect_same(second, without);
}

/// What a run does not need is not computed, and what another run adds does not change what is there.
TEST(Reference, FillsUpChunkByChunk) {
  Bench bench;
  const ReferenceLogProbs whole = bench.get(ReferenceRequest{"model", "cpu-fp32", {}});
  const ReferenceLogProbs few = bench.get({}, bench.partition(3, 5));
  const std::size_t first_chunk = bench.report.num_computed;
  EXPECT_GT(first_chunk, 2u);
  EXPECT_LT(first_chunk, num_pairs);
  EXPECT_EQ(few.chosen[0][4], whole.chosen[0][4]);
  EXPECT_TRUE(std::isnan(few.chosen[0][num_pairs - 1]));
  const ReferenceLogProbs all = bench.get();
  EXPECT_EQ(bench.report.num_computed, num_pairs - first_chunk);
  EXPECT_EQ(bench.report.num_reused, first_chunk);
  expect_same(all, whole);
  bench.get({}, bench.partition(3, 5));
  EXPECT_EQ(bench.report.num_computed, 0u);
  bench.get();
  EXPECT_EQ(bench.report.num_computed, 0u) << "a smaller run took numbers out of the cache";
}

TEST(Reference, KeyNamesModelPairsAndArithmetic) {
  Bench bench;
  bench.get();
  std::size_t files = 1;
  for (const ReferenceRequest& other : {ReferenceRequest{"other model", "cpu-fp32", bench.cache.path()},
                                        ReferenceRequest{"model", "cpu-bf16", bench.cache.path()}}) {
    bench.get(other);
    EXPECT_EQ(bench.report.num_computed, num_pairs);
    EXPECT_EQ(bench.cache.contents().size(), ++files);
  }
  bench.pairs.files[0].content_hash = "other pairs";
  bench.get();
  EXPECT_EQ(bench.report.num_computed, num_pairs);
  EXPECT_EQ(bench.cache.contents().size(), 4u);
  bench.get();
  EXPECT_EQ(bench.report.num_computed, 0u);
}

class DamagedCache : public testing::TestWithParam<std::string> {};

/// Whatever is wrong with the file: a warning, the same numbers, and a sound file afterwards.
TEST_P(DamagedCache, IsComputedAgainWithAWarning) {
  Bench bench;
  const ReferenceLogProbs sound = bench.get();
  const std::filesystem::path file = bench.only_file();
  std::string bytes = read_text(file);
  const std::string good = bytes;
  if (GetParam() == "truncated") bytes.resize(bytes.size() / 2);
  if (GetParam() == "empty") bytes.clear();
  if (GetParam() == "header") bytes[9] ^= 0x20;
  if (GetParam() == "number") bytes[bytes.size() - 5] ^= 0x04;  // still a finite double: only the checksum tells
  if (GetParam() == "shorter") {
    const std::vector<double> few(num_pairs - 1, -1.0);
    std::filesystem::remove(file);
    write_safetensors(file,
                      std::vector{tensor_to_write<double>("chosen", few), tensor_to_write<double>("rejected", few)});
  } else {
    write_text(file, bytes);
  }
  testing::internal::CaptureStderr();
  const ReferenceLogProbs again = bench.get();
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("warning: "), std::string::npos) << said;
  EXPECT_NE(said.find(file.filename().string()), std::string::npos) << said;
  EXPECT_NE(said.find("the reference is computed again"), std::string::npos) << said;
  EXPECT_EQ(bench.report.num_computed, num_pairs);
  expect_same(again, sound);
  EXPECT_EQ(read_text(bench.only_file()), good);
  testing::internal::CaptureStderr();
  bench.get();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(bench.report.num_computed, 0u);
}

INSTANTIATE_TEST_SUITE_P(Ways, DamagedCache, testing::Values("truncated", "empty", "header", "number", "shorter"),
                         [](const auto& i) { return i.param; });

TEST(Reference, GoesOnWhereTheCacheCannotBeWritten) {
  Bench bench;
  write_text(bench.cache / "file", "not a folder");
  testing::internal::CaptureStderr();
  const ReferenceLogProbs found = bench.get(ReferenceRequest{"model", "cpu-fp32", bench.cache / "file"});
  EXPECT_NE(testing::internal::GetCapturedStderr().find("the reference cache was not written"), std::string::npos);
  expect_same(found, bench.get(ReferenceRequest{"model", "cpu-fp32", {}}));
}

TEST(Reference, APairWithoutAFiniteNumberEndsTheRun) {
  Bench bench;
  const auto at = static_cast<std::size_t>(bench.model.weights.final_norm.f32() -
                                           static_cast<const float*>(bench.model.memory.get()));
  static_cast<float*>(bench.model.memory.get())[at] = std::nanf("");
  EXPECT_CONTRACT_VIOLATION(bench.get(), "no finite log-probability");
}

TEST(ClientData, FlippedClientsSeeTheReferenceSwapped) {
  Bench bench;
  const Partition partition = bench.partition();
  const ReferenceLogProbs reference = bench.get(ReferenceRequest{"model", "cpu-fp32", {}});
  for (int client : {0, 1}) {
    const ClientData data = client_data(partition, client, reference);
    EXPECT_EQ(data.client, client);
    std::size_t count = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      const auto& expected = partition.clients[static_cast<std::size_t>(client)].pairs[s];
      const auto& found = data.of(static_cast<Split>(s));
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i, ++count) {
        const double chosen = reference.chosen[0][expected[i].index],
                     rejected = reference.rejected[0][expected[i].index];
        EXPECT_EQ(found[i].pair.id, expected[i]);
        EXPECT_EQ(found[i].pair.flipped, client == 1);
        EXPECT_EQ(found[i].reference_chosen, client == 1 ? rejected : chosen);
        EXPECT_EQ(found[i].reference_rejected, client == 1 ? chosen : rejected);
      }
    }
    EXPECT_EQ(count, num_pairs / 2);
  }
}

TEST(DefaultReferenceCache, FollowsTheEnvironment) {
  const char* const names[] = {"FEDPDPO_CACHE", "XDG_CACHE_HOME", "HOME"};
  std::vector<std::optional<std::string>> kept;
  for (const char* name : names) {
    const char* value = std::getenv(name);
    kept.push_back(value ? std::optional<std::string>(value) : std::nullopt);
    ::setenv(name, (std::string("/of/") + name).c_str(), 1);
  }
  EXPECT_EQ(default_reference_cache(), "/of/FEDPDPO_CACHE");
  ::setenv("FEDPDPO_CACHE", "", 1);
  EXPECT_EQ(default_reference_cache(), "/of/XDG_CACHE_HOME/fedpdpo");
  ::unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(default_reference_cache(), "/of/HOME/.cache/fedpdpo");
  ::unsetenv("HOME");
  EXPECT_EQ(default_reference_cache(), "");
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (kept[i]) {
      ::setenv(names[i], kept[i]->c_str(), 1);
    } else {
      ::unsetenv(names[i]);
    }
  }
}

/// The ranks share the work; each has all numbers, the very bits that one rank computes.
TEST(Ranks, ReferenceIsThatOfOneRank) {
  Bench bench;
  const int self[] = {bench.world.rank()};
  const ReferenceLogProbs together = bench.get(ReferenceRequest{"model", "cpu-fp32", {}});
  ReferenceReport report;
  const ReferenceLogProbs alone =
      reference_log_probs(bench.world.subgroup(self, 1), *bench.model.backend, bench.model.folder.config(),
                          bench.model.weights, bench.pairs, bench.partition(), {"model", "cpu-fp32", {}}, report);
  expect_same(together, alone);
  // Every rank passes a folder of its own: only rank 0's counts, and all use what it holds.
  bench.get();
  EXPECT_EQ(bench.report.num_computed, num_pairs);
  EXPECT_EQ(bench.cache.contents().size(), bench.world.rank() == 0 ? 1u : 0u);
  expect_same(bench.get(), alone);
  EXPECT_EQ(bench.report.num_computed, 0u);
}

}  // namespace
}  // namespace fedpdpo::test
