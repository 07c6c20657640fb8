// Exact sums by blocks, bit for bit as core/fixed_point.cpp: the same products and roundings, by the device's
// conversions instead of bit arithmetic. The compiler must not contract a product into what follows it, hence
// __dmul_rn.
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "cuda/reduce.hpp"

namespace fedpdpo::cuda {
namespace {

struct Offsets {
  const std::int32_t* at;
  std::int64_t blocks;
};

Offsets offsets_of(ConstView view) { return {view.i32(), view.cols - 1}; }

/// Blocks along y; along x so many that each thread takes some elements of a block of mean length.
dim3 grid_of(Offsets offsets, std::int64_t size) {
  constexpr std::int64_t kPerThread = 4;
  return {grid_size(size, offsets.blocks * kThreads * kPerThread, 1 << 16), grid_size(offsets.blocks, 1, kMaxGridY), 1};
}

/// body(block, i) for this thread's elements of a block.
template <class Body>
__device__ void over_elements_of(Offsets offsets, std::int64_t block, Body body) {
  const std::int64_t end = offsets.at[block + 1], step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = offsets.at[block] + static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < end;
       i += step)
    body(i);
}

template <class Body>
__global__ void blocks_kernel(Offsets offsets, Body body) {
  for (std::int64_t block = blockIdx.y; block < offsets.blocks; block += gridDim.y)
    over_elements_of(offsets, block, [&](std::int64_t i) { body(block, i); });
}

struct LargestBits {
  __device__ unsigned operator()(unsigned a, unsigned b) const { return a > b ? a : b; }
};

/// Magnitudes are ordered as their bits are; a maximum of integers does not depend on the order.
__global__ void peaks_kernel(const float* values, Offsets offsets, unsigned* peaks) {
  for (std::int64_t block = blockIdx.y; block < offsets.blocks; block += gridDim.y) {
    unsigned peak = 0;
    over_elements_of(offsets, block,
                     [&](std::int64_t i) { peak = LargestBits()(peak, __float_as_uint(values[i]) & 0x7fffffffu); });
    peak = block_reduce(peak, LargestBits(), 0u);
    if (threadIdx.x == 0) atomicMax(peaks + block, peak);
  }
}

/// 2^exponent, a normal number.
__device__ double power_of_two(std::int32_t exponent) { return __longlong_as_double((1023ll + exponent) << 52); }

__device__ unsigned long long term_of(float value, double weight, std::int32_t exponent, TermCoding coding) {
  const double term = __dmul_rn(static_cast<double>(value), weight);
  if (coding == TermCoding::float_bits) return __float_as_uint(__double2float_rn(term));
  return static_cast<unsigned long long>(__double2ll_rn(__dmul_rn(term, power_of_two(exponent))));
}

/// Rounded to odd: truncated, and the last bit set where that is not exact.
__device__ double to_double_odd(long long sum) {
  const double truncated = __ll2double_rz(sum);
  const long long inexact = __double2ll_rz(truncated) != sum ? 1 : 0;
  return __longlong_as_double(__double_as_longlong(truncated) | inexact);
}

}  // namespace

void block_peaks(cudaStream_t stream, ConstView values, ConstView offsets, View peaks) {
  const Offsets blocks = offsets_of(offsets);
  check_cuda(cudaMemsetAsync(peaks.data, 0, static_cast<std::size_t>(peaks.cols) * sizeof(float), stream),
             "cudaMemsetAsync");
  launch(stream, "block_peaks", grid_of(blocks, values.cols), dim3(kThreads), peaks_kernel, values.f32(), blocks,
         static_cast<unsigned*>(peaks.data));
}

void add_terms(cudaStream_t stream, ConstView values, double weight, ConstView offsets, ConstView exponents,
               TermCoding coding, View sums) {
  const Offsets blocks = offsets_of(offsets);
  const float* from = values.f32();
  const std::int32_t* exponent = exponents.i32();
  auto* to = static_cast<unsigned long long*>(sums.data);
  const auto body = [=] __device__(std::int64_t block, std::int64_t i) {
    to[i] += term_of(from[i], weight, exponent[block], coding);
  };
  launch(stream, "add_terms", grid_of(blocks, values.cols), dim3(kThreads), blocks_kernel<decltype(body)>, blocks,
         body);
}

void round_sums(cudaStream_t stream, ConstView sums, ConstView offsets, ConstView exponents, TermCoding coding,
                View y) {
  const Offsets blocks = offsets_of(offsets);
  const auto* from = static_cast<const long long*>(sums.data);
  const std::int32_t* exponent = exponents.i32();
  float* to = y.f32();
  const auto body = [=] __device__(std::int64_t block, std::int64_t i) {
    to[i] = coding == TermCoding::float_bits
                ? __uint_as_float(static_cast<std::uint32_t>(from[i]))
                : __double2float_rn(__dmul_rn(to_double_odd(from[i]), power_of_two(-exponent[block])));
  };
  launch(stream, "round_sums", grid_of(blocks, sums.cols), dim3(kThreads), blocks_kernel<decltype(body)>, blocks, body);
}

}  // namespace fedpdpo::cuda
