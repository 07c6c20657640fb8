// Checkpoints: round trips, and every way in which one can be torn or altered: the one before it must be used. The
// Ranks tests run under mpirun with several ranks as well as alone; the others alone.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/record/checkpoint.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

class Checkpoint : public testing::Test {
 protected:
  std::filesystem::path directory() const { return folder_ / "checkpoints"; }
  std::filesystem::path round(const std::string& name) const { return directory() / name; }

  void write(int round, int serial, int keep = 2) const {
    StateFile client, server;
    const std::vector<float> values(100, static_cast<float>(round));
    const std::vector<double> moments{0.5, 0.25 * serial};
    client.put("adapter", values);
    client.put("moments", moments);
    server.put_text("method", "fedpdpo");
    CheckpointWriter writer(world_, directory(), round, serial);
    writer.add("client-00003", client);
    writer.add("server", server);
    writer.commit({{"round", std::to_string(round)}, {"fingerprint", "abc"}}, keep);
  }

  // The (round, serial) that a resume would use; (-1, -1) for none. Also collects the warnings.
  std::pair<int, int> found() {
    testing::internal::CaptureStderr();
    const auto reader = CheckpointReader::find(world_, directory());
    warnings_ = testing::internal::GetCapturedStderr();
    return reader ? std::pair(reader->round(), reader->serial()) : std::pair(-1, -1);
  }

  void expect_fallback(const std::string& warning) {
    EXPECT_EQ(found(), std::pair(1, 0));
    EXPECT_NE(warnings_.find(warning), std::string::npos) << warnings_ << " lacks " << warning;
    EXPECT_EQ(std::count(warnings_.begin(), warnings_.end(), '\n'), 1) << warnings_;
  }

  void edit_manifest(const std::function<void(json&)>& edit) const {
    json manifest = json::parse(read_text(manifest_));
    edit(manifest);
    write_text(manifest_, manifest.dump());
  }

  TemporaryFolder folder_;
  Communicator world_ = Communicator::world();
  std::string warnings_;
  std::filesystem::path newest_ = directory() / "round-00002-00";
  std::filesystem::path manifest_ = newest_ / "manifest.json";
};

TEST_F(Checkpoint, OneThatIsNotWantedIsPassedOver) {
  write(1, 0);
  write(2, 0);
  const auto wanted = [](const CheckpointReader::Facts& facts) { return facts.at("round") == "1"; };
  const auto reader = CheckpointReader::find(world_, directory(), wanted);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->round(), 1);
  EXPECT_FALSE(CheckpointReader::find(world_, directory(), [](const auto&) { return false; }));
}

TEST_F(Checkpoint, OneThatIsNamed) {
  write(1, 0);
  write(2, 0);
  for (const std::filesystem::path& folder : {round("round-00001-00"), round("round-00001-00") / ""}) {
    const CheckpointReader reader = CheckpointReader::at(world_, folder);
    EXPECT_EQ(reader.round(), 1);
    EXPECT_EQ(reader.folder(), round("round-00001-00"));
    EXPECT_EQ(reader.fact("fingerprint"), "abc");
    EXPECT_INPUT_ERROR(reader.fact("stage"), "manifest.json: facts.stage: expected a text, found none");
  }
  EXPECT_INPUT_ERROR(CheckpointReader::at(world_, directory()), "expected a folder named as round-00012-00");
  EXPECT_INPUT_ERROR(CheckpointReader::at(world_, round("round-00009-00")), "manifest.json");
  write_text(newest_ / "server.safetensors", "other");
  EXPECT_INPUT_ERROR(CheckpointReader::at(world_, newest_), "server.safetensors");
}

TEST_F(Checkpoint, RoundTrip) {
  write(7, 1);
  const auto reader = CheckpointReader::find(world_, directory());
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->round(), 7);
  EXPECT_EQ(reader->serial(), 1);
  EXPECT_EQ(reader->folder(), round("round-00007-01"));
  EXPECT_EQ(reader->facts(), (std::map<std::string, std::string>{{"round", "7"}, {"fingerprint", "abc"}}));
  EXPECT_TRUE(reader->contains("client-00003"));
  EXPECT_FALSE(reader->contains("client-00004"));
  const SafetensorsFile client = reader->open("client-00003");
  EXPECT_TRUE(std::ranges::equal(client.read<float>("adapter"), std::vector<float>(100, 7.f)));
  EXPECT_TRUE(std::ranges::equal(client.read<double>("moments"), std::vector<double>{0.5, 0.25}));
  EXPECT_EQ(reader->open("server").metadata().at("method"), "fedpdpo");
  EXPECT_INPUT_ERROR(reader->open("client-00004"), "round-00007-01: client-00004: expected a file");
}

TEST_F(Checkpoint, TheManifestSaysWhatIsThere) {
  write(2, 0);
  const json manifest = json::parse(read_text(manifest_));
  EXPECT_EQ(manifest.at("format"), "fedpdpo-checkpoint");
  EXPECT_EQ(manifest.at("version"), 1);
  EXPECT_EQ(manifest.at("facts").at("fingerprint"), "abc");
  ASSERT_EQ(manifest.at("files").size(), 2u);
  EXPECT_EQ(manifest["files"][0]["name"], "client-00003.safetensors");
  EXPECT_EQ(manifest["files"][1]["name"], "server.safetensors");
  for (const json& entry : manifest["files"]) {
    const std::filesystem::path file = newest_ / entry.at("name").get<std::string>();
    EXPECT_EQ(entry.at("size"), std::filesystem::file_size(file));
    EXPECT_EQ(entry.at("sha256"), sha256_file(file));
  }
}

TEST_F(Checkpoint, NoneIsNone) {
  EXPECT_EQ(found(), std::pair(-1, -1));
  std::filesystem::create_directories(directory());
  EXPECT_EQ(found(), std::pair(-1, -1));
  EXPECT_EQ(warnings_, "");
  write_text(folder_ / "file", "");
  EXPECT_INPUT_ERROR(CheckpointReader::find(world_, folder_ / "file"), "expected a folder of checkpoints");
}

TEST_F(Checkpoint, TheNewestIsUsed) {
  write(9, 0, 10);
  write(10, 0, 10);
  write(10, 1, 10);
  EXPECT_EQ(found(), std::pair(10, 1));
  write(123456, 0, 10);  // more digits than the padding
  EXPECT_EQ(found(), std::pair(123456, 0));
  write(100, 0, 10);
  EXPECT_EQ(found(), std::pair(123456, 0));
}

TEST_F(Checkpoint, OldOnesAreRemoved) {
  for (int r = 1; r <= 5; ++r) write(r, 0);
  EXPECT_FALSE(std::filesystem::exists(round("round-00003-00")));
  EXPECT_TRUE(std::filesystem::exists(round("round-00004-00")));
  EXPECT_TRUE(std::filesystem::exists(round("round-00005-00")));
  write(6, 0, 1);
  EXPECT_FALSE(std::filesystem::exists(round("round-00005-00")));
  EXPECT_EQ(found(), std::pair(6, 0));
}

// Resumed from 1 because 2 is damaged: 2 must not push 1 out before another good one is there.
TEST_F(Checkpoint, LaterOnesDoNotCountAndStay) {
  write(1, 0);
  write(3, 0);
  write_text(round("round-00003-00") / "server.safetensors", "damaged");
  write(2, 0);
  EXPECT_TRUE(std::filesystem::exists(round("round-00001-00")));
  EXPECT_TRUE(std::filesystem::exists(round("round-00003-00")));
  EXPECT_EQ(found(), std::pair(2, 0));
}

TEST_F(Checkpoint, OtherNamesAreLeftAlone) {
  for (const char* name :
       {"round-1-0", "round-00001", "round-00001-00.old", "round--0001-00", "round-00001--1", "notes"}) {
    write_text(round(name) / "manifest.json", "{}");
  }
  write(1, 0);
  write(2, 0);
  write(3, 0);
  EXPECT_EQ(found(), std::pair(3, 0));
  EXPECT_EQ(warnings_, "");
  for (const char* name :
       {"round-1-0", "round-00001", "round-00001-00.old", "round--0001-00", "round-00001--1", "notes"}) {
    EXPECT_TRUE(std::filesystem::exists(round(name) / "manifest.json")) << name;
  }
}

TEST_F(Checkpoint, WritingAgainReplacesWhatATornAttemptLeft) {
  write_text(newest_ / "client-00099.safetensors", "left over");
  write_text(newest_ / ".server.safetensors.tmp-123", "left over");
  write(2, 0);
  EXPECT_FALSE(std::filesystem::exists(newest_ / "client-00099.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(newest_ / ".server.safetensors.tmp-123"));
  EXPECT_EQ(found(), std::pair(2, 0));
}

TEST_F(Checkpoint, WithoutAManifestThereIsNone) {
  write(1, 0);
  {
    CheckpointWriter killed(world_, directory(), 2, 0);
    killed.add("server", StateFile());
  }
  expect_fallback("manifest.json");
}

TEST_F(Checkpoint, AnEmptyFolderIsNone) {
  write(1, 0);
  std::filesystem::create_directories(newest_);
  expect_fallback("round-00002-00");
}

TEST_F(Checkpoint, TornManifests) {
  write(1, 0);
  write(2, 0);
  const std::string whole = read_text(manifest_);
  for (std::size_t size = 0; size + 2 < whole.size(); size += 5) {
    write_text(manifest_, whole.substr(0, size));
    expect_fallback("manifest.json");
  }
}

TEST_F(Checkpoint, ManifestsOfAnotherKind) {
  write(1, 0);
  write(2, 0);
  const std::string whole = read_text(manifest_);
  const std::pair<std::function<void(json&)>, const char*> edits[] = {
      {[](json& m) { m["format"] = "other"; }, "format"},
      {[](json& m) { m["version"] = 2; }, "version"},
      {[](json& m) { m["version"] = "1"; }, "version"},
      {[](json& m) { m["round"] = 3; }, "expected 2 and 0, found 3 and 0"},
      {[](json& m) { m["round"] = (std::int64_t{1} << 32) + 2; }, "found 4294967298 and 0"},
      {[](json& m) { m.erase("serial"); }, "serial"},
      {[](json& m) { m["facts"] = 1; }, "facts"},
      {[](json& m) { m["facts"]["x"] = 1; }, "facts"},
      {[](json& m) { m["files"] = "x"; }, "files"},
      {[](json& m) { m["files"][0] = 7; }, "name"},
      {[](json& m) { m["files"][0]["name"] = "../round-00001-00/server.safetensors"; }, "name"},
      {[](json& m) { m["files"][0]["name"] = "manifest.json"; }, "name"},
      {[](json& m) { m["files"][0]["size"] = -1; }, "-1 bytes"},
      {[](json& m) { m["files"][0]["sha256"] = std::string(64, '0'); }, "SHA-256"},
      {[](json& m) { m["files"][0].erase("sha256"); }, "sha256"},
      {[](json& m) {
         m["files"].push_back({{"name", "x.safetensors"}, {"size", 1}, {"sha256", ""}});
       },
       "x.safetensors"},
      {[](json& m) { m = json::array(); }, "format"},
  };
  for (const auto& [edit, warning] : edits) {
    SCOPED_TRACE(warning);
    write_text(manifest_, whole);
    edit_manifest(edit);
    expect_fallback(warning);
  }
  write_text(manifest_, whole);
  EXPECT_EQ(found(), std::pair(2, 0));
}

TEST_F(Checkpoint, MissingCutAndAlteredFiles) {
  write(1, 0);
  write(2, 0);
  const std::filesystem::path file = newest_ / "client-00003.safetensors";
  const std::string whole = read_text(file);
  std::filesystem::remove(file);
  expect_fallback("client-00003.safetensors");
  std::filesystem::create_directory(file);
  expect_fallback("client-00003.safetensors");
  std::filesystem::remove(file);
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, whole.size() - 1}) {
    write_text(file, whole.substr(0, size));
    expect_fallback("client-00003.safetensors");
  }
  write_text(file, whole + '\0');
  expect_fallback("client-00003.safetensors");
  RandomStream random({.seed = 1});
  for (int i = 0; i < 50; ++i) {
    std::string bytes = whole;
    const std::size_t at = random.below(bytes.size());
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
    write_text(file, bytes);
    expect_fallback("client-00003.safetensors");
  }
  write_text(file, whole);
  EXPECT_EQ(found(), std::pair(2, 0));
}

// Nothing vouches for files that the manifest does not list: they do no harm and cannot be opened.
TEST_F(Checkpoint, ExtraFilesAreIgnored) {
  write(1, 0);
  write(2, 0);
  write_text(newest_ / "client-00099.safetensors", "not ours");
  write_text(newest_ / ".manifest.json.tmp-7", "{");
  EXPECT_EQ(found(), std::pair(2, 0));
  EXPECT_EQ(warnings_, "");
  EXPECT_INPUT_ERROR(CheckpointReader::find(world_, directory())->open("client-00099"), "client-00099");
}

TEST_F(Checkpoint, AllDamagedIsNone) {
  write(1, 0);
  write(2, 0);
  std::filesystem::remove(newest_ / "manifest.json");
  write_text(round("round-00001-00") / "server.safetensors", "");
  EXPECT_EQ(found(), std::pair(-1, -1));
  EXPECT_EQ(std::count(warnings_.begin(), warnings_.end(), '\n'), 2) << warnings_;
}

TEST_F(Checkpoint, SameStateSameBytes) {
  write(2, 0);
  const std::string manifest = read_text(manifest_);
  const std::string client = read_text(newest_ / "client-00003.safetensors");
  write(2, 0);
  EXPECT_EQ(read_text(manifest_), manifest);
  EXPECT_EQ(read_text(newest_ / "client-00003.safetensors"), client);
}

TEST_F(Checkpoint, AFolderThatCannotBeMadeIsAnInputError) {
  write_text(folder_ / "file", "");
  EXPECT_INPUT_ERROR(CheckpointWriter(world_, folder_ / "file", 1, 0), "a folder that can be made");
}

TEST_F(Checkpoint, ContradictionsAreContractViolations) {
  CheckpointWriter writer(world_, directory(), 1, 0);
  for (const char* name : {"", "../x", "a/b", ".hidden", "sp ace"}) {
    EXPECT_CONTRACT_VIOLATION(writer.add(name, StateFile()), "plain");
  }
  writer.add("server", StateFile());
  writer.add("server", StateFile());
  EXPECT_CONTRACT_VIOLATION(writer.commit({}), "the same checkpoint file");
  StateFile state;
  const std::vector<float> values{1};
  state.put("x", values);
  EXPECT_CONTRACT_VIOLATION(state.put("x", values), "twice");
  state.put_text("t", "1");
  EXPECT_CONTRACT_VIOLATION(state.put_text("t", "2"), "twice");
}

TEST(StateFile, CopiesOutliveTheirSource) {
  const TemporaryFolder folder;
  StateFile copy;
  {
    StateFile state;
    state.put_copy("steps", std::vector<std::int64_t>{1, 2, 3});
    state.put_copy("rates", std::vector<double>{0.5});
    for (int i = 0; i < 50; ++i) state.put_copy("more-" + std::to_string(i), std::vector<std::int64_t>{i});
    copy = state;
  }
  write_safetensors(folder / "x", copy.tensors(), copy.texts());
  const SafetensorsFile read(folder / "x");
  EXPECT_TRUE(std::ranges::equal(read.read<std::int64_t>("steps"), std::vector<std::int64_t>{1, 2, 3}));
  EXPECT_TRUE(std::ranges::equal(read.read<double>("rates"), std::vector<double>{0.5}));
  EXPECT_EQ(read.read<std::int64_t>("more-0")[0], 0);
}

// Every rank writes its clients' files; any rank can open all of them afterwards.
TEST(Ranks, FilesOfAllRanksMakeOneCheckpoint) {
  const Communicator world = Communicator::world();
  std::optional<TemporaryFolder> folder;
  std::string directory;
  if (world.rank() == 0) directory = folder.emplace().path().string();
  directory = world.broadcast(directory, 0);
  constexpr int num_clients = 5;
  {
    CheckpointWriter writer(world, directory, 4, 0);
    for (int client = world.rank(); client < num_clients; client += world.size()) {
      StateFile state;
      state.put_copy("client", std::vector<std::int64_t>{client});
      writer.add("client-" + std::to_string(client), state);
    }
    writer.commit({{"ranks", "any"}});
  }
  const auto reader = CheckpointReader::find(world, directory);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->round(), 4);
  for (int client = 0; client < num_clients; ++client) {
    EXPECT_EQ(reader->open("client-" + std::to_string(client)).read<std::int64_t>("client")[0], client);
  }
  world.barrier();  // rank 0 removes the folder
}

TEST(Ranks, EveryRankHearsOfAFailure) {
  const Communicator world = Communicator::world();
  EXPECT_INPUT_ERROR(CheckpointWriter(world, "/dev/null/checkpoints", 1, 0), "a folder that can be made");
  EXPECT_INPUT_ERROR(CheckpointReader::find(world, "/dev/null"), "a folder of checkpoints");
}

TEST(Ranks, NoneIsNoneOnEveryRank) {
  const Communicator world = Communicator::world();
  EXPECT_FALSE(CheckpointReader::find(world, "/no/such/folder"));
}

}  // namespace
}  // namespace fedpdpo
