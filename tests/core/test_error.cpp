// The lines of errors, contracts, and log messages.
#include <gtest/gtest.h>

#include <string>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

std::string line(const char* file, const char* field, const char* expected, const char* found) {
  return InputError(file, field, expected, found).what();
}

TEST(InputErrorLine, NamesFileFieldExpectedAndFound) {
  EXPECT_EQ(line("a.json", "hidden_size", "an integer", "\"x\""),
            "a.json: hidden_size: expected an integer, found \"x\"");
}

TEST(InputErrorLine, LeavesEmptyPartsOut) {
  EXPECT_EQ(line("", "--rounds", "a number", "many"), "--rounds: expected a number, found many");
  EXPECT_EQ(line("a.h5", "", "HDF5", "text"), "a.h5: expected HDF5, found text");
  EXPECT_EQ(line("a.h5", "/x", "", "a hole"), "a.h5: /x: found a hole");
  EXPECT_EQ(line("a.h5", "/x", "a group", ""), "a.h5: /x: expected a group");
  EXPECT_EQ(line("", "", "", "trouble"), "found trouble");
  EXPECT_EQ(line("", "", "", ""), "");
}

TEST(InputErrorLine, StaysOneLineWhateverIsQuoted) {
  const std::string text = line("a\nb", "c\rd", "e\tf", "g\x1b[31mh");
  EXPECT_TRUE(test::is_one_line(text));
  EXPECT_EQ(text, "a\\nb: c\\x0dd: expected e\\x09f, found g\\x1b[31mh");
}

TEST(InputErrorLine, CutsLongQuotesAtWholeCharacters) {
  const std::string long_text(5000, 'x');
  EXPECT_LT(line("f", "", "", long_text.c_str()).size(), 400u);
  EXPECT_TRUE(line("f", "", "", long_text.c_str()).ends_with("xxx..."));
  std::string umlauts = "x";  // so that the cut falls inside a two-byte character
  for (int i = 0; i < 300; ++i) umlauts += "\xC3\xA4";
  EXPECT_TRUE(line("f", "", "", umlauts.c_str()).ends_with("\xC3\xA4..."));
}

TEST(InputErrorLine, AReadyLineIsKept) { EXPECT_STREQ(InputError("as it is").what(), "as it is"); }

TEST(Check, PassesOrThrowsWithThePlace) {
  EXPECT_NO_THROW(check(true, "never"));
  EXPECT_CONTRACT_VIOLATION(check(false, "shapes differ"), "shapes differ");
  EXPECT_CONTRACT_VIOLATION(check(false, "shapes differ"), "test_error.cpp");
}

TEST(Check, IsNoInputError) { EXPECT_THROW(check(false, ""), std::logic_error); }

class Log : public testing::Test {
 protected:
  void TearDown() override { set_log_rank(0); }

  template <class Say>
  static std::string said(const Say& say) {
    testing::internal::CaptureStderr();
    say();
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(Log, RankZeroSaysEverythingWithoutItsNumber) {
  EXPECT_EQ(said([] { log_info("round 1"); }), "fedpdpo: round 1\n");
  EXPECT_EQ(said([] { log_warning("slow"); }), "fedpdpo: warning: slow\n");
  EXPECT_EQ(said([] { log_error("over"); }), "fedpdpo: error: over\n");
}

TEST_F(Log, OtherRanksWarnWithTheirNumberAndAreSilentOtherwise) {
  set_log_rank(3);
  EXPECT_EQ(said([] { log_info("round 1"); }), "");
  EXPECT_EQ(said([] { log_warning("slow"); }), "fedpdpo: warning: [rank 3] slow\n");
  EXPECT_EQ(said([] { log_error("over"); }), "fedpdpo: error: [rank 3] over\n");
}

}  // namespace
}  // namespace fedpdpo
