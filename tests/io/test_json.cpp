// JSON fields with their types, and the lines for mistakes.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fedpdpo/io/json.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::TemporaryFolder;
using test::write_text;

const nlohmann::json object = nlohmann::json::parse(R"({
  "int": 7, "negative": -3, "big": 9223372036854775808, "largest": 9223372036854775807, "float": 1.5, "whole": 2.0,
  "yes": true, "text": "t", "nothing": null, "list": [1], "line": "a\nb"})");

TEST(Json, ReadsAFile) {
  const TemporaryFolder folder;
  write_text(folder / "a.json", R"({"x": {"y": [1, 2]}})");
  EXPECT_EQ(read_json(folder / "a.json")["x"]["y"][1], 2);
}

TEST(Json, NamesLineAndColumnOfAMistake) {
  const TemporaryFolder folder;
  write_text(folder / "a.json", "{\n  \"x\": 1,\n  oops\n}");
  EXPECT_INPUT_ERROR(read_json(folder / "a.json"),
                     "a.json: expected valid JSON, found parse error at line 3, column 3");
}

TEST(Json, RefusesWhatIsNoJson) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(read_json(folder / "none.json"), "No such file");
  for (const std::string_view text : {"", " ", "{", "{}x", "[1,]", "{\"a\":\"\xff\"}", "1e999", "NaN"}) {
    write_text(folder / "a.json", text);
    EXPECT_INPUT_ERROR(read_json(folder / "a.json"), "expected valid JSON");
  }
  write_text(folder / "deep.json", std::string(1'000'000, '['));
  EXPECT_INPUT_ERROR(read_json(folder / "deep.json"), "expected valid JSON");
}

TEST(Json, RequiredFieldsHaveTheirTypes) {
  EXPECT_EQ(json_required<std::int64_t>(object, "int", "f"), 7);
  EXPECT_EQ(json_required<std::int64_t>(object, "negative", "f"), -3);
  EXPECT_EQ(json_required<std::int64_t>(object, "largest", "f"), INT64_MAX);
  EXPECT_EQ(json_required<double>(object, "float", "f"), 1.5);
  EXPECT_EQ(json_required<double>(object, "int", "f"), 7.0);
  EXPECT_TRUE(json_required<bool>(object, "yes", "f"));
  EXPECT_EQ(json_required<std::string>(object, "text", "f"), "t");
}

TEST(Json, OtherTypesAreErrors) {
  EXPECT_INPUT_ERROR(json_required<std::int64_t>(object, "float", "f"), "f: float: expected an integer, found 1.5");
  EXPECT_INPUT_ERROR(json_required<std::int64_t>(object, "whole", "f"), "expected an integer, found 2.0");
  EXPECT_INPUT_ERROR(json_required<std::int64_t>(object, "big", "f"), "an integer, found 9223372036854775808");
  EXPECT_INPUT_ERROR(json_required<std::int64_t>(object, "yes", "f"), "expected an integer, found true");
  EXPECT_INPUT_ERROR(json_required<double>(object, "text", "f"), "expected a number, found \"t\"");
  EXPECT_INPUT_ERROR(json_required<bool>(object, "int", "f"), "expected true or false, found 7");
  EXPECT_INPUT_ERROR(json_required<std::string>(object, "list", "f"), "expected a string, found [1]");
  EXPECT_INPUT_ERROR(json_optional<double>(object, "line", "f"), "expected a number, found");
}

TEST(Json, MissingAndNullFields) {
  EXPECT_EQ(json_optional<std::int64_t>(object, "absent", "f"), std::nullopt);
  EXPECT_EQ(json_optional<std::string>(object, "nothing", "f"), std::nullopt);
  EXPECT_EQ(json_optional<double>(object, "float", "f"), 1.5);
  EXPECT_INPUT_ERROR(json_required<std::int64_t>(object, "absent", "f"),
                     "f: absent: expected an integer, found nothing");
  EXPECT_INPUT_ERROR(json_required<bool>(object, "nothing", "f"), "expected true or false, found nothing");
}

TEST(Json, OnlyObjectsHaveFields) {
  EXPECT_INPUT_ERROR(json_optional<double>(nlohmann::json::parse("[1]"), "x", "f"), "found array");
}

}  // namespace
}  // namespace fedpdpo
