// AdamW over spans of flat buffers, many in one launch: a row of blocks a span.
#include <algorithm>

#include "cuda/elements.hpp"
#include "cuda/kernels.hpp"

namespace fedpdpo::cuda {
namespace {

struct Sweep {
  float* values;
  const float* gradients;
  float* first_moment;
  float* second_moment;
  std::int64_t count;
  AdamWFactors factors;
  bool packed;
};

/// By value: nothing to upload.
struct SweepTable {
  static constexpr int kMost = 32;
  Sweep sweeps[kMost];
};

template <int N>
__device__ void sweep_from(const Sweep& sweep, std::int64_t first, std::int64_t step) {
  const AdamWFactors& f = sweep.factors;
  const Elements<float> values{sweep.values, 0}, moment{sweep.first_moment, 0}, square{sweep.second_moment, 0};
  const Elements<const float> gradients{sweep.gradients, 0};
  for (std::int64_t c = first * N; c < sweep.count; c += step * N) {
    Pack<N> p = values.load<N>(0, c), m = moment.load<N>(0, c), v = square.load<N>(0, c);
    const Pack<N> g = gradients.load<N>(0, c);
    for (int i = 0; i < N; ++i) {
      const float gradient = f.gradient_scale * g.v[i];
      m.v[i] = fmaf(f.beta1, m.v[i], f.one_minus_beta1 * gradient);
      v.v[i] = fmaf(f.beta2, v.v[i], f.one_minus_beta2 * (gradient * gradient));
      const float root = fmaf(sqrtf(v.v[i]), f.inverse_root_correction2, f.epsilon);
      p.v[i] = fmaf(f.decay, p.v[i], -(f.step_size * (m.v[i] / root)));
    }
    moment.store(0, c, m);
    square.store(0, c, v);
    values.store(0, c, p);
  }
}

__global__ void adamw_kernel(SweepTable table) {
  const Sweep& sweep = table.sweeps[blockIdx.y];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  if (sweep.packed) {
    sweep_from<kPack>(sweep, first, step);
  } else {
    sweep_from<1>(sweep, first, step);
  }
}

}  // namespace

void adamw(cudaStream_t stream, std::span<const AdamWSpan> spans) {
  for (std::size_t first = 0; first < spans.size(); first += SweepTable::kMost) {
    const std::size_t count = std::min<std::size_t>(SweepTable::kMost, spans.size() - first);
    SweepTable table{};
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const AdamWSpan& span = spans[first + i];
      table.sweeps[i] = {span.values.f32(),
                         span.gradients.f32(),
                         span.first_moment.f32(),
                         span.second_moment.f32(),
                         span.values.cols,
                         adamw_factors(span.options),
                         all_in_packs(span.values, span.gradients, span.first_moment, span.second_moment)};
      longest = std::max(longest, span.values.cols);
    }
    if (longest == 0) continue;
    constexpr std::int64_t kMostBlocks = 2048;
    launch(stream, "adamw", dim3(grid_size(longest, kPack * kThreads, kMostBlocks), static_cast<unsigned>(count)),
           dim3(kThreads), adamw_kernel, table);
  }
}

}  // namespace fedpdpo::cuda
