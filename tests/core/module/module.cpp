// A shared library for the tests of SharedLibrary.
#include "core/module/module.hpp"

int fedpdpo_test_triple(int x) { return 3 * x; }
