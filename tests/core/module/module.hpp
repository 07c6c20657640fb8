// What the shared library of the tests exports.
#pragma once

extern "C" __attribute__((visibility("default"))) int fedpdpo_test_triple(int x);
