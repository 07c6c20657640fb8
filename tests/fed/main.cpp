// GoogleTest inside an MPI session; it works without mpirun as well. A failing rank's status ends the job.
#include <gtest/gtest.h>

#include "fedpdpo/comm/communicator.hpp"

int main(int argc, char** argv) {
  const fedpdpo::MpiSession session(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
