// Static cuts of a range over OpenMP threads; with one thread, or little work, no parallel region at all.
#pragma once

#include <omp.h>

#include <cstdint>

namespace fedpdpo::cpu {

/// body(begin, end) over [0, count), cut at multiples of `grain`. `work` counts elements touched in all.
template <class Body>
void parallel_ranges(int num_threads, std::int64_t count, std::int64_t work, Body body, std::int64_t grain = 1) {
  constexpr std::int64_t kMinWork = 16384;
  if (num_threads == 1 || work < kMinWork || count <= grain) {
    if (count > 0) body(std::int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(num_threads)
  {
    const std::int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const std::int64_t blocks = (count + grain - 1) / grain;
    const std::int64_t begin = blocks * thread / threads * grain;
    const std::int64_t end = thread + 1 == threads ? count : blocks * (thread + 1) / threads * grain;
    if (begin < end) body(begin, end);
  }
}

}  // namespace fedpdpo::cpu
