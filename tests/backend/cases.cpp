// The backends that the tests of operations run on: the CPU's kernels at every vector width, and a CUDA device where
// there is one.
#include "fedpdpo/backend/cuda.hpp"
#include "fixture.hpp"

namespace fedpdpo {

std::vector<BackendCase> backend_cases() {
  return {{"cpu_1_thread", [] { return cpu_backend_of(0, 1); }},
          {"cpu_2_threads", [] { return cpu_backend_of(0, 2); }},
          {"cpu_avx2", [] { return cpu_backend_of(HWY_AVX2, 1); }},
          {"cpu_portable", [] { return cpu_backend_of(HWY_STATIC_TARGET, 1); }},
          {"cuda", []() -> std::unique_ptr<Backend> {
             return cuda_devices().devices.empty() ? nullptr : make_cuda_backend({});
           }}};
}

}  // namespace fedpdpo
