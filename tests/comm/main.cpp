// Every rank runs every test; rank 0 reports as usual, the others only what failed.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fedpdpo/comm/communicator.hpp"

namespace fedpdpo::test {
namespace {

class FailurePrinter : public ::testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}

  // Remembered here: asking for the test's name while a failure is reported would wait for GoogleTest's own lock.
  void OnTestStart(const ::testing::TestInfo& test) override {
    test_ = std::string(test.test_suite_name()) + "." + test.name();
  }

  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s: %s:%d: %s\n", rank_, test_.c_str(), result.file_name() ? result.file_name() : "",
                 result.line_number(), result.message());
  }

 private:
  int rank_;
  std::string test_;
};

int run(int argc, char** argv) {
  const Communicator world = Communicator::world();
  if (argc == 3 && std::string_view(argv[1]) == "--abort-with") {
    if (world.rank() == world.size() - 1) MpiSession::abort(std::atoi(argv[2]));
    world.barrier();  // never left: the job ends meanwhile
    return 0;
  }
  ::testing::InitGoogleTest(&argc, argv);
  if (world.rank() != 0) {
    ::testing::TestEventListeners& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter(world.rank()));
  }
  return RUN_ALL_TESTS();
}

}  // namespace
}  // namespace fedpdpo::test

int main(int argc, char** argv) {
  const fedpdpo::MpiSession session(&argc, &argv);
  return fedpdpo::test::run(argc, argv);
}
