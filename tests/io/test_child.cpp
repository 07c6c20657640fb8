// The taster: a child's crash is told from its end.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <stdexcept>

#include "fedpdpo/io/child.hpp"

namespace fedpdpo {
namespace {

TEST(Child, EndsByItself) { EXPECT_TRUE(survives_in_child([] {})); }

TEST(Child, AnExceptionIsNoCrash) {
  EXPECT_TRUE(survives_in_child([] { throw std::runtime_error("bad input"); }));
}

TEST(Child, CrashesAreSeen) {
  EXPECT_FALSE(survives_in_child([] { std::raise(SIGSEGV); }));
  EXPECT_FALSE(survives_in_child([] { std::abort(); }));
}

TEST(Child, ChangesNothingHere) {
  int value = 1;
  EXPECT_TRUE(survives_in_child([&] { value = 2; }));
  EXPECT_EQ(value, 1);
}

}  // namespace
}  // namespace fedpdpo
