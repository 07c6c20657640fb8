// HDF5: round trips, the reader against a file of h5py's (data/make_h5py_types.py), and bytes that depend on the
// content alone.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "fedpdpo/io/hdf5.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::read_text;
using test::TemporaryFolder;
using test::write_text;
using Shape = std::array<std::uint64_t, 1>;

const std::filesystem::path h5py_file = std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests/io/data/h5py_types.h5";

template <class T>
void put(Hdf5Writer& writer, std::string_view name, const std::vector<T>& values) {
  writer.write<T>(name, values, Shape{values.size()}, "unit", "what it is");
}

template <class T>
void expect_round_trip(const std::vector<T>& values) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  put(writer, "/a/b/values", values);
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.read<T>("/a/b/values"), values);
  EXPECT_EQ(reader.shape("/a/b/values"), std::vector<std::uint64_t>{values.size()});
}

TEST(Hdf5RoundTrip, EveryTypeAtItsLimits) {
  expect_round_trip<std::uint8_t>({0, 1, 255});
  expect_round_trip<std::int32_t>({INT32_MIN, -1, 0, INT32_MAX});
  expect_round_trip<std::uint32_t>({0, UINT32_MAX});
  expect_round_trip<std::int64_t>({INT64_MIN, 0, INT64_MAX});
  expect_round_trip<std::uint64_t>({0, UINT64_MAX});
  expect_round_trip<float>({0.f, -0.f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(),
                            std::numeric_limits<float>::infinity()});
  expect_round_trip<double>({1e-320, 0.1, std::numeric_limits<double>::max(), -INFINITY});
}

TEST(Hdf5RoundTrip, NothingIsSomething) {
  expect_round_trip<double>({});
  expect_round_trip<std::uint32_t>({});
}

TEST(Hdf5RoundTrip, NaNStaysNaN) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  put<double>(writer, "/x", {NAN, 1});
  writer.save(folder / "x.h5");
  const auto values = Hdf5Reader(folder / "x.h5").read<double>("/x");
  EXPECT_TRUE(std::isnan(values.at(0)));
  EXPECT_EQ(values.at(1), 1);
}

TEST(Hdf5RoundTrip, ShapesAndScalars) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  const std::vector<std::int64_t> values{1, 2, 3, 4, 5, 6};
  writer.write<std::int64_t>("/matrix", values, std::array<std::uint64_t, 3>{3, 1, 2}, "", "");
  writer.write<std::int64_t>("/scalar", std::span(values).first(1), {}, "", "");
  writer.write<std::int64_t>("/hollow", {}, std::array<std::uint64_t, 2>{4, 0}, "", "");
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.shape("/matrix"), (std::vector<std::uint64_t>{3, 1, 2}));
  EXPECT_EQ(reader.read<std::int64_t>("/matrix"), values);
  EXPECT_EQ(reader.shape("/scalar"), std::vector<std::uint64_t>{});
  EXPECT_EQ(reader.read<std::int64_t>("/scalar"), std::vector<std::int64_t>{1});
  EXPECT_EQ(reader.shape("/hollow"), (std::vector<std::uint64_t>{4, 0}));
  EXPECT_TRUE(reader.read<std::int64_t>("/hollow").empty());
}

TEST(Hdf5RoundTrip, Strings) {
  const TemporaryFolder folder;
  const std::vector<std::string> values{"", "a", "h\xC3\xA4lfte", std::string(100'000, 'x')};
  Hdf5Writer writer;
  writer.write_strings("/names", values, "name", "names");
  writer.write_strings("/none", {}, "name", "no names");
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.read_strings("/names"), values);
  EXPECT_TRUE(reader.read_strings("/none").empty());
  EXPECT_EQ(reader.required_attribute<std::string>("/names", "units"), "name");
}

TEST(Hdf5RoundTrip, Attributes) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  writer.group("/config");
  writer.attribute<std::string>("/", "format", "fedpdpo-run");
  writer.attribute<std::int64_t>("/", "version", INT64_MIN);
  writer.attribute<double>("/", "ratio", 0.1);
  writer.attribute<std::string>("/config", "empty", "");
  writer.attribute<std::string>("/config", "long", std::string(300'000, 'y'));
  put<double>(writer, "/x", {1});
  writer.attribute<std::string>("/x", "note", "n");
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.attribute<std::string>("/", "format"), "fedpdpo-run");
  EXPECT_EQ(reader.attribute<std::int64_t>("/", "version"), INT64_MIN);
  EXPECT_EQ(reader.attribute<double>("/", "ratio"), 0.1);
  EXPECT_EQ(reader.attribute<std::string>("/config", "empty"), "");
  EXPECT_EQ(reader.required_attribute<std::string>("/config", "long"), std::string(300'000, 'y'));
  EXPECT_EQ(reader.required_attribute<std::string>("/x", "note"), "n");
  EXPECT_EQ(reader.required_attribute<std::string>("/x", "units"), "unit");
  EXPECT_EQ(reader.required_attribute<std::string>("/x", "description"), "what it is");
  EXPECT_EQ(reader.attribute<std::string>("/x", "absent"), std::nullopt);
}

TEST(Hdf5RoundTrip, ManyAttributesAndMembers) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  writer.group("/config");
  for (int i = 0; i < 200; ++i) {
    writer.attribute<std::string>("/config", "option-" + std::to_string(i), std::string(1000, 'v'));
    writer.group("/groups/" + std::to_string(1000 + i));
  }
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.attribute<std::string>("/config", "option-199"), std::string(1000, 'v'));
  const auto members = reader.members("/groups");
  ASSERT_EQ(members.size(), 200u);
  EXPECT_EQ(members.front(), "1000");
  EXPECT_EQ(members.back(), "1199");
  EXPECT_TRUE(std::is_sorted(members.begin(), members.end()));
}

TEST(Hdf5Writer, OverwritesAndReplaces) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  put<double>(writer, "/x", {1, 2});
  put<double>(writer, "/x", {3, 4});
  writer.attribute<std::string>("/", "status", "running");
  writer.attribute<std::string>("/", "status", "complete");
  writer.attribute<std::int64_t>("/", "kind", 1);
  writer.attribute<std::string>("/", "kind", "one");
  writer.save(folder / "x.h5");
  const Hdf5Reader reader(folder / "x.h5");
  EXPECT_EQ(reader.read<double>("/x"), (std::vector<double>{3, 4}));
  EXPECT_EQ(reader.attribute<std::string>("/", "status"), "complete");
  EXPECT_EQ(reader.attribute<std::string>("/", "kind"), "one");
}

TEST(Hdf5Writer, RefusesContradictions) {
  Hdf5Writer writer;
  put<double>(writer, "/x", {1, 2});
  EXPECT_CONTRACT_VIOLATION(put<double>(writer, "/x", {1, 2, 3}), "another type or shape");
  EXPECT_CONTRACT_VIOLATION(put<float>(writer, "/x", {1, 2}), "another type or shape");
  EXPECT_CONTRACT_VIOLATION(writer.group("/x"), "exists");
  EXPECT_CONTRACT_VIOLATION(put<double>(writer, "/x/below", {1}), "exists");
  EXPECT_CONTRACT_VIOLATION(put<double>(writer, "no-slash", {1}), "begins with");
  EXPECT_CONTRACT_VIOLATION(writer.group("/a//b"), "malformed");
  EXPECT_CONTRACT_VIOLATION(writer.group("/a/"), "malformed");
  EXPECT_CONTRACT_VIOLATION(writer.attribute<double>("/absent", "a", 1), "does not exist");
  EXPECT_CONTRACT_VIOLATION(writer.attribute<std::string>("/", "a", std::string("a\0b", 3)), "zero byte");
  const std::vector<double> three{1, 2, 3};
  EXPECT_CONTRACT_VIOLATION(writer.write<double>("/y", three, Shape{4}, "", ""), "differ from its shape");
}

TEST(Hdf5Writer, AGroupIsNoDatasetLater) {
  Hdf5Writer writer;
  writer.group("/a");
  EXPECT_CONTRACT_VIOLATION(put<double>(writer, "/a", {}), "another type or shape");
}

void fill(Hdf5Writer& writer, double value) {
  writer.group("/config");
  writer.attribute<std::string>("/config", "seed", "1");
  put<double>(writer, "/rounds/loss", std::vector<double>(100, value));
  const std::vector<std::string> names{"a", "b"};
  writer.write_strings("/partition/names", names, "name", "names");
  writer.attribute<std::string>("/", "status", value == 0 ? "running" : "complete");
}

TEST(Hdf5Writer, BytesDependOnTheContentAlone) {
  const TemporaryFolder folder;
  Hdf5Writer straight;
  fill(straight, 1);
  straight.save(folder / "straight.h5");
  Hdf5Writer saved_often;
  put<double>(saved_often, "/rounds/loss", std::vector<double>(100, 7.0));
  for (int i = 0; i < 5; ++i) {
    fill(saved_often, 0);
    saved_often.save(folder / "often.h5");
  }
  EXPECT_NE(read_text(folder / "often.h5"), read_text(folder / "straight.h5"));
  fill(saved_often, 1);
  saved_often.save(folder / "often.h5");
  EXPECT_EQ(read_text(folder / "often.h5"), read_text(folder / "straight.h5"));
}

TEST(Hdf5Writer, SavesAtomically) {
  const TemporaryFolder folder;
  Hdf5Writer writer;
  fill(writer, 0);
  writer.save(folder / "x.h5");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"x.h5"});  // the file in memory leaves no other
  EXPECT_INPUT_ERROR(writer.save(folder / "none" / "x.h5"), "No such file");
  const Hdf5Reader open(folder / "x.h5");
  fill(writer, 1);
  writer.save(folder / "x.h5");  // under a reader's eyes
  EXPECT_EQ(open.read<double>("/rounds/loss").front(), 0);
  EXPECT_EQ(Hdf5Reader(folder / "x.h5").read<double>("/rounds/loss").front(), 1);
}

TEST(Hdf5Writer, TwoAtATime) {
  const TemporaryFolder folder;
  Hdf5Writer a, b;
  put<double>(a, "/x", {1});
  put<double>(b, "/x", {2});
  a.save(folder / "a.h5");
  b.save(folder / "b.h5");
  Hdf5Writer moved(std::move(a));
  moved.save(folder / "moved.h5");
  EXPECT_EQ(read_text(folder / "moved.h5"), read_text(folder / "a.h5"));
  EXPECT_EQ(Hdf5Reader(folder / "b.h5").read<double>("/x").front(), 2);
}

TEST(Hdf5OfH5py, Attributes) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_EQ(reader.required_attribute<std::string>("/", "text"), "pairs, h\xC3\xA4lfte");
  EXPECT_EQ(reader.required_attribute<std::string>("/", "empty"), "");
  EXPECT_EQ(reader.required_attribute<std::string>("/", "bytes"), "ascii");
  EXPECT_EQ(reader.required_attribute<std::string>("/", "long").size(), 70'000u);
  EXPECT_EQ(reader.required_attribute<std::int64_t>("/", "int"), -7);
  EXPECT_EQ(reader.required_attribute<std::int64_t>("/", "small"), 200);
  EXPECT_EQ(reader.required_attribute<std::int64_t>("/", "one"), 5);
  EXPECT_EQ(reader.required_attribute<double>("/", "float"), 0.25);
  EXPECT_EQ(reader.required_attribute<double>("/", "int"), -7.0);
  EXPECT_EQ(reader.attribute<double>("/numbers", "float"), std::nullopt);
}

TEST(Hdf5OfH5py, WrongAttributes) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_INPUT_ERROR(reader.required_attribute<std::string>("/", "absent"),
                     "h5py_types.h5: / attribute absent: expected it to be there, found none");
  EXPECT_INPUT_ERROR(reader.attribute<std::string>("/", "int"), "expected strings, found integers");
  EXPECT_INPUT_ERROR(reader.attribute<std::int64_t>("/", "text"), "expected integers, found strings");
  EXPECT_INPUT_ERROR(reader.attribute<std::int64_t>("/", "float"), "expected integers, found floating-point");
  EXPECT_INPUT_ERROR(reader.attribute<std::int64_t>("/", "huge"), "9223372036854775809");
  EXPECT_INPUT_ERROR(reader.attribute<std::int64_t>("/", "two"), "expected one value, found 2");
  EXPECT_INPUT_ERROR(reader.attribute<double>("/", "none"), "expected one value, found 0");
  EXPECT_INPUT_ERROR(reader.attribute<double>("/nowhere", "a"), "/nowhere: expected it to be there");
}

template <class T>
void expect_integers(const Hdf5Reader& reader, const std::vector<T>& expected_signed,
                     const std::vector<T>& expected_unsigned) {
  if (std::is_signed_v<T>) {
    for (const char* name : {"int8", "int16", "int32", "int64"}) {
      EXPECT_EQ(reader.read<T>(std::string("/numbers/") + name), expected_signed) << name;
    }
  }
  for (const char* name : {"uint8", "uint16", "uint32", "uint64"}) {
    EXPECT_EQ(reader.read<T>(std::string("/numbers/") + name), expected_unsigned) << name;
  }
}

TEST(Hdf5OfH5py, IntegersOfEveryWidth) {
  const Hdf5Reader reader(h5py_file);
  expect_integers<std::uint8_t>(reader, {}, {0, 1, 2, 200});
  expect_integers<std::uint32_t>(reader, {}, {0, 1, 2, 200});
  expect_integers<std::uint64_t>(reader, {}, {0, 1, 2, 200});
  expect_integers<std::int32_t>(reader, {0, 1, -2, 100}, {0, 1, 2, 200});
  expect_integers<std::int64_t>(reader, {0, 1, -2, 100}, {0, 1, 2, 200});
  EXPECT_EQ(reader.read<std::int32_t>("/numbers/big_endian"), (std::vector<std::int32_t>{1, -2, 70000}));
  EXPECT_EQ(reader.read<std::int32_t>("/numbers/scalar"), std::vector<std::int32_t>{42});
  EXPECT_EQ(reader.read<std::int64_t>("/numbers/matrix"), (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_TRUE(reader.read<std::uint32_t>("/numbers/empty").empty());
  const auto packed = reader.read<std::uint32_t>("/numbers/packed");
  ASSERT_EQ(packed.size(), 10000u);
  for (std::uint32_t i = 0; i < packed.size(); ++i) ASSERT_EQ(packed[i], i % 7);
}

TEST(Hdf5OfH5py, IntegersThatDoNotFitAreErrors) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_INPUT_ERROR(reader.read<std::int64_t>("/edges/above_int64"), "9223372036854775808 in entry 1");
  EXPECT_INPUT_ERROR(reader.read<std::uint32_t>("/edges/above_uint32"),
                     "/edges/above_uint32: expected integers from 0 to 4294967295, found 4294967296 in entry 1");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/edges/above_uint32"), "4294967296 in entry 1");
  EXPECT_INPUT_ERROR(reader.read<std::uint64_t>("/edges/negative"), "-1 in entry 1");
  EXPECT_INPUT_ERROR(reader.read<std::uint32_t>("/numbers/int8"), "-2 in entry 2");
  EXPECT_INPUT_ERROR(reader.read<std::uint8_t>("/edges/negative"), "expected integers from 0 to 255, found -1");
}

TEST(Hdf5OfH5py, FloatsOfEveryWidth) {
  const Hdf5Reader reader(h5py_file);
  for (const char* name : {"/numbers/float16", "/numbers/float32", "/numbers/float64"}) {
    const auto wide = reader.read<double>(name);
    const auto narrow = reader.read<float>(name);
    EXPECT_EQ(wide.at(1), -1.5);
    EXPECT_EQ(narrow.at(1), -1.5f);
    EXPECT_TRUE(std::isinf(wide.at(2)) && std::isinf(narrow.at(2)));
    EXPECT_TRUE(std::isnan(wide.at(3)) && std::isnan(narrow.at(3)));
  }
  EXPECT_INPUT_ERROR(reader.read<float>("/edges/above_float"), "1e+300 in entry 1");
}

TEST(Hdf5OfH5py, WrongClassesAreErrors) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_INPUT_ERROR(reader.read<double>("/numbers/int32"), "expected floating-point numbers, found integers");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/numbers/float32"), "expected integers, found floating-point numbers");
  EXPECT_INPUT_ERROR(reader.read<std::uint8_t>("/odd/bool"), "found an enumeration");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/odd/compound"), "found a compound type");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/strings/variable"), "found strings");
  EXPECT_INPUT_ERROR(reader.read_strings("/numbers/int32"), "expected strings, found integers");
  EXPECT_INPUT_ERROR(reader.read_strings("/strings/matrix"), "expected one dimension, found 2");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/odd/unwritten"), "which the file stores, found 10 entries");
}

TEST(Hdf5OfH5py, StringsOfEveryKind) {
  const Hdf5Reader reader(h5py_file);
  using Strings = std::vector<std::string>;
  EXPECT_EQ(reader.read_strings("/strings/variable"), (Strings{"a", "", "h\xC3\xA4lfte", std::string(5000, 'y')}));
  EXPECT_EQ(reader.read_strings("/strings/variable_ascii"), (Strings{"a", "bc"}));
  EXPECT_EQ(reader.read_strings("/strings/fixed"), (Strings{"one", "three", ""}));
  EXPECT_EQ(reader.read_strings("/strings/fixed_utf8"), (Strings{"\xC3\xA4", "b"}));
  EXPECT_EQ(reader.read_strings("/strings/space_padded"), (Strings{"ab", "abcdef"}));
  EXPECT_TRUE(reader.read_strings("/strings/none").empty());
}

TEST(Hdf5Reader, WhatExists) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_TRUE(reader.exists("/"));
  EXPECT_TRUE(reader.exists("/numbers"));
  EXPECT_TRUE(reader.exists("/numbers/int32"));
  EXPECT_TRUE(reader.exists("/odd/soft"));
  EXPECT_FALSE(reader.exists("/nowhere"));
  EXPECT_FALSE(reader.exists("/nowhere/deeper/still"));
  EXPECT_FALSE(reader.exists("/odd/dangling"));
  EXPECT_FALSE(reader.exists("numbers"));
  EXPECT_FALSE(reader.exists(""));
  EXPECT_EQ(reader.members("/"), (std::vector<std::string>{"edges", "numbers", "odd", "strings"}));
  EXPECT_INPUT_ERROR(reader.members("/numbers/int32"), "expected a group");
  EXPECT_INPUT_ERROR(reader.members("/nowhere"), "/nowhere: expected it to be there, found none");
}

TEST(Hdf5Reader, WhatDoesNotExistIsAnError) {
  const Hdf5Reader reader(h5py_file);
  EXPECT_EQ(reader.read<std::int32_t>("/odd/soft"), (std::vector<std::int32_t>{0, 1, -2, 100}));
  EXPECT_EQ(reader.shape("/odd/null"), std::vector<std::uint64_t>{0});
  EXPECT_TRUE(reader.read<std::int32_t>("/odd/null").empty());
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/numbers"), "/numbers: expected a dataset, found another kind");
  EXPECT_INPUT_ERROR(reader.read<std::int32_t>("/none"), "h5py_types.h5: /none: expected a dataset, found none");
  EXPECT_INPUT_ERROR(reader.shape("/odd/dangling"), "expected a dataset, found none");
  EXPECT_INPUT_ERROR(reader.read_strings("/none"), "expected a dataset, found none");
  EXPECT_ANY_THROW(reader.read<std::int32_t>("/odd/external"));
}

TEST(Hdf5Reader, AContentHashIsOfNumbersAlone) {
  const TemporaryFolder folder;
  const auto hash = [&](std::vector<double> numbers, const std::string& name, const std::string& units,
                        std::vector<std::uint64_t> shape) {
    Hdf5Writer writer;
    writer.write<double>("/a/b/" + name, numbers, shape, units, "numbers");
    writer.write_strings("/a/names", std::vector<std::string>{"x", "y"}, "", "names");
    writer.write<std::int32_t>("/other/i", std::vector<std::int32_t>{static_cast<std::int32_t>(numbers.size())},
                               std::vector<std::uint64_t>{1}, "", "outside");
    writer.save(folder / "a.h5");
    constexpr std::string_view groups[] = {"/a", "/none"};
    return Hdf5Reader(folder / "a.h5").content_hash(groups);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::string first = hash({1, nan, 3, 4}, "x", "nat", {4});
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(hash({1, nan, 3, 4}, "x", "other units", {4}), first);
  EXPECT_NE(hash({1, nan, 3, 4.0000000000000009}, "x", "nat", {4}), first);
  EXPECT_NE(hash({1, nan, 3, 4}, "y", "nat", {4}), first);
  EXPECT_NE(hash({1, nan, 3, 4}, "x", "nat", {2, 2}), first);
  constexpr std::string_view outside[] = {"/other"};
  EXPECT_NE(Hdf5Reader(folder / "a.h5").content_hash(outside), first);
}

TEST(Hdf5Reader, RefusesWhatIsNoHdf5) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(Hdf5Reader(folder / "none.h5"), "none.h5: expected a readable file, found No such file");
  EXPECT_INPUT_ERROR(Hdf5Reader(folder.path()), "found a folder");
  for (const std::string& text : {std::string(), std::string("text"), std::string(100'000, '\0')}) {
    write_text(folder / "a.h5", text);
    testing::internal::CaptureStderr();
    EXPECT_INPUT_ERROR(Hdf5Reader(folder / "a.h5"), "a.h5: expected a whole HDF5 file");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");  // no stack of the library's
  }
}

}  // namespace
}  // namespace fedpdpo
