// run.h5: the layout that the analysis reads, partial and final names, bytes that depend on the content alone.
#include <gtest/gtest.h>

#include <cmath>

#include "fedpdpo/record/run_file.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::read_text;
using test::TemporaryFolder;
using test::write_text;
using Numbers = std::vector<std::uint64_t>;

PairSet two_domains() {
  PairSet pairs;
  for (const char* domain : {"stories", "code"}) {
    PairFile file;
    file.domain = domain;
    file.label.assign(6, 0);
    file.label_names = {"x"};
    pairs.files.push_back(std::move(file));
  }
  pairs.label_names = {"stories/x", "code/x"};
  pairs.global_label = {{0, 0, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1}};
  return pairs;
}

Partition three_clients() {
  Partition partition;
  partition.clients.resize(3);
  partition.clients[0] = {"stories/client000", 0, false, false, {{{{0, 4}, {0, 1}}, {{0, 2}}, {{0, 3}}}}};
  partition.clients[1] = {"stories/client001", 0, true, false, {{{{0, 0}}, {}, {{0, 5}}}}};
  partition.clients[2] = {"code/client002", 1, false, true, {{{{1, 1}, {1, 0}, {1, 5}}, {{1, 2}}, {{1, 3}, {1, 4}}}}};
  return partition;
}

History three_rounds() {
  History history(2);
  history.define("/rounds/test/after/accuracy", 1, "1", "mean accuracy").row(1)[0] = 0.75;
  history.define("/clients/test/after/accuracy", 3, "1", "accuracy").row(2)[1] = 0.5;
  history.define("/timings/train", 1, "s", "seconds of training").row(1)[0] = 12;
  return history;
}

FinalMargins margins() {
  return {{0, 1, 2, 2}, {{0, 3}, {0, 5}, {1, 3}, {1, 4}}, {0.5, -1, 2, 0}, {0.25, -1, 1, 0}, {0.25, 0, 1, 0}};
}

NewClients newcomers() { return {16, {2, 5}, {1, 0}, {0.5, 0.25}, {0.75, 1}, {0.625, 0.375}}; }

void fill(RunFile& file) {
  file.write_config({{"method", "fedpdpo"}, {"seed", "7"}}, "fedpdpo run --seed 7");
  file.write_environment({{"hostname", "node1"}, {"version", "0.1.0"}});
  file.write_partition(two_domains(), three_clients());
  file.write_history(three_rounds());
}

// Every dataset of the file has units and a description.
void expect_described(const Hdf5Reader& reader, const std::string& group, int& datasets) {
  for (const std::string& member : reader.members(group)) {
    const std::string path = (group == "/" ? "" : group) + "/" + member;
    bool is_group = true;
    try {
      reader.shape(path);
      is_group = false;
    } catch (const InputError&) {
    }
    if (is_group) {
      expect_described(reader, path, datasets);
      continue;
    }
    ++datasets;
    EXPECT_FALSE(reader.required_attribute<std::string>(path, "units").empty()) << path;
    EXPECT_FALSE(reader.required_attribute<std::string>(path, "description").empty()) << path;
  }
}

class RunFileTest : public testing::Test {
 protected:
  std::filesystem::path path() const { return folder_ / "run.h5"; }
  TemporaryFolder folder_;
};

TEST_F(RunFileTest, HoldsWhatTheAnalysisReads) {
  RunFile file(path());
  fill(file);
  file.write_final(margins());
  file.finish();
  const Hdf5Reader reader(path());
  EXPECT_EQ(reader.required_attribute<std::string>("/", "format"), "fedpdpo-run");
  EXPECT_EQ(reader.required_attribute<std::int64_t>("/", "version"), 1);
  EXPECT_EQ(reader.required_attribute<std::string>("/", "status"), "complete");
  EXPECT_EQ(reader.required_attribute<std::string>("/config", "method"), "fedpdpo");
  EXPECT_EQ(reader.required_attribute<std::string>("/config", "seed"), "7");
  EXPECT_EQ(reader.required_attribute<std::string>("/config", "command_line"), "fedpdpo run --seed 7");
  EXPECT_EQ(reader.required_attribute<std::string>("/environment", "hostname"), "node1");

  EXPECT_EQ(reader.read<std::int64_t>("/rounds/round"), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_EQ(reader.shape("/rounds/test/after/accuracy"), Numbers{3});
  EXPECT_EQ(reader.read<double>("/rounds/test/after/accuracy")[1], 0.75);
  EXPECT_EQ(reader.shape("/clients/test/after/accuracy"), (Numbers{3, 3}));
  EXPECT_EQ(reader.read<double>("/clients/test/after/accuracy")[7], 0.5);
  EXPECT_TRUE(std::isnan(reader.read<double>("/clients/test/after/accuracy")[0]));
  EXPECT_EQ(reader.required_attribute<std::string>("/timings/train", "units"), "s");
}

TEST_F(RunFileTest, HoldsThePartition) {
  RunFile file(path());
  fill(file);
  file.finish();
  const Hdf5Reader reader(path());
  EXPECT_EQ(reader.read_strings("/partition/client_names"),
            (std::vector<std::string>{"stories/client000", "stories/client001", "code/client002"}));
  EXPECT_EQ(reader.read<std::int32_t>("/partition/client_domain"), (std::vector<std::int32_t>{0, 0, 1}));
  EXPECT_EQ(reader.read_strings("/partition/domain_names"), (std::vector<std::string>{"stories", "code"}));
  EXPECT_EQ(reader.read_strings("/partition/label_names"), (std::vector<std::string>{"stories/x", "code/x"}));
  EXPECT_EQ(reader.shape("/partition/label_histogram"), (Numbers{3, 3, 2}));
  EXPECT_EQ(reader.read<std::int64_t>("/partition/label_histogram"),
            (std::vector<std::int64_t>{2, 0, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 3, 0, 1, 0, 2}));
  EXPECT_EQ(reader.read<double>("/partition/flipped"), (std::vector<double>{0, 1, 0}));
  EXPECT_EQ(reader.read<double>("/partition/is_new"), (std::vector<double>{0, 0, 1}));
  EXPECT_EQ(reader.read<std::uint64_t>("/partition/train/offsets"), (Numbers{0, 2, 3, 6}));
  EXPECT_EQ(reader.read<std::uint32_t>("/partition/train/file"), (std::vector<std::uint32_t>{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(reader.read<std::uint64_t>("/partition/train/pair"), (Numbers{4, 1, 0, 1, 0, 5}));
  EXPECT_EQ(reader.read<std::uint64_t>("/partition/validation/offsets"), (Numbers{0, 1, 1, 2}));
  EXPECT_EQ(reader.read<std::uint64_t>("/partition/test/offsets"), (Numbers{0, 1, 2, 4}));
  EXPECT_EQ(reader.read<std::uint64_t>("/partition/test/pair"), (Numbers{3, 5, 3, 4}));
}

TEST_F(RunFileTest, HoldsTheFinalMargins) {
  RunFile file(path());
  fill(file);
  file.write_final(margins());
  file.finish();
  const Hdf5Reader reader(path());
  EXPECT_EQ(reader.read<std::int32_t>("/final/test/client"), margins().client);
  EXPECT_EQ(reader.read<std::uint32_t>("/final/test/file"), (std::vector<std::uint32_t>{0, 0, 1, 1}));
  EXPECT_EQ(reader.read<std::uint64_t>("/final/test/pair"), (Numbers{3, 5, 3, 4}));
  EXPECT_EQ(reader.read<double>("/final/test/margin"), margins().margin);
  EXPECT_EQ(reader.read<double>("/final/test/margin_implicit"), margins().margin_implicit);
  EXPECT_EQ(reader.read<double>("/final/test/margin_explicit"), margins().margin_explicit);
  FinalMargins torn = margins();
  torn.margin.pop_back();
  EXPECT_CONTRACT_VIOLATION(RunFile(path()).write_final(torn), "different lengths");
}

/// Row i is the model of client i, NaN for a model that there is not.
TEST_F(RunFileTest, HoldsTheCrossEvaluation) {
  const std::vector<double> accuracy{1, 0.5, 0.25, 0, std::nan(""), 0.75, 0.125, 0.625, 1};
  RunFile file(path());
  file.write_cross({3, accuracy});
  file.finish();
  const Hdf5Reader reader(path());
  EXPECT_EQ(reader.shape("/final/cross/accuracy"), (Numbers{3, 3}));
  const std::vector<double> found = reader.read<double>("/final/cross/accuracy");
  EXPECT_EQ(found[1], 0.5) << "the model of client 0 on the data of client 1";
  EXPECT_EQ(found[3], 0);
  EXPECT_TRUE(std::isnan(found[4]));
  EXPECT_EQ(found[5], 0.75);
  EXPECT_CONTRACT_VIOLATION(RunFile(path()).write_cross({2, accuracy}), "a square matrix");
}

TEST_F(RunFileTest, HoldsTheNewClients) {
  RunFile file(path());
  file.write_new_clients(newcomers());
  file.finish();
  const Hdf5Reader reader(path());
  const std::string at = "/final/new_clients";
  EXPECT_EQ(reader.required_attribute<std::int64_t>(at, "steps"), 16);
  EXPECT_EQ(reader.read<std::int32_t>(at + "/client"), (std::vector<std::int32_t>{2, 5}));
  EXPECT_EQ(reader.read<std::int32_t>(at + "/group"), (std::vector<std::int32_t>{1, 0}));
  EXPECT_EQ(reader.read<double>(at + "/accuracy_received"), (std::vector<double>{0.5, 0.25}));
  EXPECT_EQ(reader.read<double>(at + "/accuracy_fitted"), (std::vector<double>{0.75, 1}));
  EXPECT_EQ(reader.read<double>(at + "/loss_fitted"), (std::vector<double>{0.625, 0.375}));
}

TEST_F(RunFileTest, EveryDatasetIsDescribed) {
  RunFile file(path());
  fill(file);
  file.write_final(margins());
  file.write_cross({1, {0.5}});
  file.write_new_clients(newcomers());
  file.finish();
  int datasets = 0;
  expect_described(Hdf5Reader(path()), "/", datasets);
  EXPECT_EQ(datasets, 7 + 9 + 4 + 6 + 1 + 5);  // partition, its splits, series, final margins, cross, new clients
}

TEST_F(RunFileTest, OneClientIsStillAnAxis) {
  History history(2);
  history.define("/clients/test/after/accuracy", 1, "1", "accuracy");
  history.define("/rounds/test/after/accuracy", 1, "1", "accuracy");
  RunFile file(path());
  file.write_history(history);
  file.finish();
  EXPECT_EQ(Hdf5Reader(path()).shape("/clients/test/after/accuracy"), (Numbers{3, 1}));
  EXPECT_EQ(Hdf5Reader(path()).shape("/rounds/test/after/accuracy"), Numbers{3});
}

TEST_F(RunFileTest, IsPartialUntilItIsFinished) {
  RunFile file(path());
  fill(file);
  file.flush();
  EXPECT_EQ(RunFile::partial_path(path()), folder_ / "run.h5.partial");
  EXPECT_EQ(folder_.contents(), std::vector<std::string>{"run.h5.partial"});
  EXPECT_EQ(Hdf5Reader(folder_ / "run.h5.partial").required_attribute<std::string>("/", "status"), "running");
  History later = three_rounds();
  later.at("/rounds/test/after/accuracy").row(2)[0] = 0.875;
  file.write_history(later);
  file.flush();
  EXPECT_EQ(Hdf5Reader(folder_ / "run.h5.partial").read<double>("/rounds/test/after/accuracy")[2], 0.875);
  file.finish();
  EXPECT_EQ(folder_.contents(), std::vector<std::string>{"run.h5"});
}

TEST_F(RunFileTest, AnEarlierResultStandsUntilTheNewOneIsFinished) {
  write_text(path(), "earlier");
  write_text(folder_ / "run.h5.partial", "left by a killed run");
  RunFile file(path());
  fill(file);
  file.flush();
  EXPECT_EQ(read_text(path()), "earlier");
  file.finish();
  EXPECT_EQ(Hdf5Reader(path()).required_attribute<std::string>("/", "status"), "complete");
  EXPECT_EQ(folder_.contents(), std::vector<std::string>{"run.h5"});
}

TEST_F(RunFileTest, AResumedRunWritesTheSameBytes) {
  RunFile uninterrupted(folder_ / "a.h5");
  fill(uninterrupted);
  uninterrupted.flush();
  uninterrupted.flush();
  uninterrupted.write_final(margins());
  uninterrupted.finish();
  RunFile resumed(folder_ / "b.h5");
  resumed.write_history(three_rounds());
  fill(resumed);
  resumed.write_final(margins());
  resumed.finish();
  EXPECT_EQ(read_text(folder_ / "a.h5"), read_text(folder_ / "b.h5"));
}

TEST_F(RunFileTest, FailsWithALine) {
  RunFile file(folder_ / "none" / "run.h5");
  EXPECT_INPUT_ERROR(file.flush(), "run.h5.partial: expected a file that can be written");
  std::filesystem::create_directory(path());
  write_text(path() / "in the way", "");
  RunFile blocked(path());
  EXPECT_INPUT_ERROR(blocked.finish(), "run.h5: expected a file that can be replaced");
}

}  // namespace
}  // namespace fedpdpo
