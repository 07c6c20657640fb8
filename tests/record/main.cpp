// GoogleTest inside an MPI session; it works without mpirun as well. A failing rank's status ends the job.
#include <gtest/gtest.h>

#include "fedpdpo/comm/communicator.hpp"

// Asked by the address sanitizer where it is linked in: Open MPI never frees some of what it allocates.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

int main(int argc, char** argv) {
  const fedpdpo::MpiSession session(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
