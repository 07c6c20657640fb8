// libFuzzer entry for the safetensors reader; not part of the build. From the repository's root:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Itests/io
//   tests/io/fuzz/fuzz_safetensors.cpp
//     src/core/error.cpp src/io/{safetensors,safetensors_header,file,atomic_file,digest}.cpp -lfmt -lcrypto -o fuzz
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "fedpdpo/core/error.hpp"
#include "safetensors_builder.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // A file in memory: the reader maps it by its name below /proc.
  const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (descriptor < 0 || ::write(descriptor, data, size) != static_cast<ssize_t>(size)) std::abort();
  try {
    fedpdpo::test::touch_everything(fedpdpo::SafetensorsFile("/proc/self/fd/" + std::to_string(descriptor)));
  } catch (const fedpdpo::InputError&) {
    // What a bad file should give; anything else ends the program.
  }
  ::close(descriptor);
  return 0;
}
