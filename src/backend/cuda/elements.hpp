// Matrices of f32 or bf16 as kernels read and write them: in fp32 registers, several neighbouring columns at a time
// where shapes and addresses allow it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/launch.hpp"

namespace fedpdpo::cuda {

/// bf16 by its bits.
struct Half {
  std::uint16_t bits;
};

inline __device__ float to_float(float x) { return x; }
inline __device__ float to_float(Half x) { return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16); }
inline __device__ void from_float(float x, float& y) { y = x; }
inline __device__ void from_float(float x, Half& y) { y.bits = rounded_to_bf16(x); }

/// N neighbouring columns.
template <int N>
struct Pack {
  float v[N];
};

/// Rows of T, `stride` apart. T may be const.
template <class T>
struct Elements {
  using Value = std::remove_const_t<T>;
  template <int N>
  struct alignas(N * sizeof(Value)) Raw {
    Value v[N];
  };

  T* data;
  std::int64_t stride;

  template <int N>
  __device__ Pack<N> load(std::int64_t t, std::int64_t c) const {
    const Raw<N> raw = *reinterpret_cast<const Raw<N>*>(data + t * stride + c);
    Pack<N> pack;
    for (int i = 0; i < N; ++i) pack.v[i] = to_float(raw.v[i]);
    return pack;
  }
  template <int N>
  __device__ void store(std::int64_t t, std::int64_t c, const Pack<N>& pack) const {
    Raw<N> raw;
    for (int i = 0; i < N; ++i) from_float(pack.v[i], raw.v[i]);
    *reinterpret_cast<Raw<N>*>(data + t * stride + c) = raw;
  }
  template <int N>
  __device__ void put(std::int64_t t, std::int64_t c, Pack<N> pack, Write mode) const {
    if (mode == Write::accumulate) {
      const Pack<N> before = load<N>(t, c);
      for (int i = 0; i < N; ++i) pack.v[i] = before.v[i] + pack.v[i];
    }
    store<N>(t, c, pack);
  }
};

inline constexpr int kPack = 4;

/// True where every row of x is whole, aligned packs.
inline bool in_packs(ConstView x) {
  const auto bytes = static_cast<std::uintptr_t>(kPack * dtype_size(x.dtype));
  return x.cols % kPack == 0 && (x.stride % kPack == 0 || x.rows <= 1) &&
         reinterpret_cast<std::uintptr_t>(x.data) % bytes == 0;
}
template <class... Views>
bool all_in_packs(Views... views) {
  return (in_packs(views) && ...);
}

/// use(x as Elements of its type).
template <class Use>
void typed(ConstView x, Use use) {
  if (x.dtype == DType::bf16) return use(Elements<const Half>{static_cast<const Half*>(x.data), x.stride});
  use(Elements<const float>{x.f32(), x.stride});
}
template <class Use>
void typed(View x, Use use) {
  if (x.dtype == DType::bf16) return use(Elements<Half>{static_cast<Half*>(x.data), x.stride});
  use(Elements<float>{x.f32(), x.stride});
}

template <int N, class Body>
__global__ void packs_kernel(std::int64_t rows, std::int64_t packs, Body body) {
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.y) * blockDim.y;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t t = static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; t < rows; t += row_step)
    for (std::int64_t p = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; p < packs; p += step)
      body.template at<N>(t, p * N);
}

/// body.at<N>(row, first of N columns) for all columns of all rows, each by one thread; N is kPack where `packed`.
template <class Body>
void over_packs(cudaStream_t stream, const char* operation, std::int64_t rows, std::int64_t cols, bool packed,
                Body body) {
  const std::int64_t packs = packed ? cols / kPack : cols;
  const dim3 block = element_block(packs);
  const dim3 grid(grid_size(packs, block.x, 1 << 24), grid_size(rows, block.y, kMaxGridY), 1);
  launch(stream, operation, grid, block, packed ? packs_kernel<kPack, Body> : packs_kernel<1, Body>, rows, packs, body);
}

}  // namespace fedpdpo::cuda
