// Dropout by counter: element (row, column) is kept where word column % 4 of philox4x32 at {column / 4, first_row +
// row, step, client ^ round << 16} is at least p 2^32, so that a row's mask depends on nothing but its name.
#include <algorithm>
#include <cmath>

#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/dropout_kernels.cpp"
// clang-format off
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/simd-inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

using Words = hn::ScalableTag<std::uint32_t>;
using WordVec = hn::Vec<Words>;

#if HWY_TARGET == HWY_SCALAR

HWY_INLINE void random_words(std::uint32_t group, std::uint32_t row, std::uint32_t step, std::uint32_t owner,
                             PhiloxKey key, std::uint32_t* words) {
  const PhiloxCounter drawn = philox4x32({group, row, step, owner}, key);
  std::copy(drawn.begin(), drawn.end(), words);
}

#else

// The two halves of the 64-bit products of x with a constant.
HWY_INLINE void multiply_wide(WordVec x, std::uint32_t factor, WordVec& high, WordVec& low) {
  const Words d;
  const hn::Repartition<std::uint64_t, Words> wide;
  const WordVec f = hn::Set(d, factor);
  const auto even = hn::MulEven(x, f);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, x))), f);
  high = hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even)));
  low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
}

// Words of kLanes consecutive counters {group, ...}, interleaved into column order.
HWY_INLINE void random_words(std::uint32_t group, std::uint32_t row, std::uint32_t step, std::uint32_t owner,
                             PhiloxKey key, std::uint32_t* words) {
  const Words d;
  WordVec c0 = hn::Iota(d, group), c1 = hn::Set(d, row), c2 = hn::Set(d, step), c3 = hn::Set(d, owner);
  for (int round = 0; round < 10; ++round) {
    WordVec high0, low0, high2, low2;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high2, low2);
    c0 = hn::Xor(hn::Xor(high2, c1), hn::Set(d, key[0]));
    c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(d, key[1]));
    c1 = low2;
    c3 = low0;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  hn::StoreInterleaved4(c0, c1, c2, c3, d, words);
}

#endif

void Dropout(std::uint32_t threshold, float scale, PhiloxKey key, std::uint32_t step, std::uint32_t owner,
             std::uint32_t first_row, ConstView x, View y, Write mode) {
  const Words d;
  constexpr std::int64_t kWords = 4 * kLanes;
  alignas(64) std::uint32_t words[kWords];
  // Unsigned order by way of the signed comparison: flip the top bit of both.
  const hn::RebindToSigned<Words> signed_words;
  const WordVec top = hn::Set(d, 0x80000000u);
  const auto limit = hn::BitCast(signed_words, hn::Set(d, threshold ^ 0x80000000u));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* x_row = x.f32() + t * x.stride;
    float* y_row = y.f32() + t * y.stride;
    for (std::int64_t begin = 0; begin < x.cols; begin += kWords) {
      random_words(static_cast<std::uint32_t>(begin / 4), first_row + static_cast<std::uint32_t>(t), step, owner, key,
                   words);
      const float* from = x_row + begin;
      float* to = y_row + begin;
      for_columns(HWY_MIN(kWords, x.cols - begin), [&](auto io, std::int64_t c) HWY_ATTR {
        const auto word = hn::BitCast(signed_words, hn::Xor(hn::Load(d, words + c), top));
        const auto dropped = hn::RebindMask(Floats(), hn::Lt(word, limit));
        const Vec kept = hn::IfThenZeroElse(dropped, hn::Mul(splat(scale), io.load(from + c)));
        io.store(mode == Write::accumulate ? hn::Add(io.load(to + c), kept) : kept, to + c);
      });
    }
  }
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fedpdpo::cpu {

HWY_EXPORT(Dropout);

void dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) {
  const auto threshold = static_cast<std::uint32_t>(std::ceil(static_cast<double>(p) * 4294967296.0));
  HWY_DYNAMIC_DISPATCH(Dropout)
  (threshold, 1.0f / (1.0f - p), philox_key(id.seed, id.purpose), id.step, id.client ^ (id.round << 16),
   static_cast<std::uint32_t>(first_row), x, y, mode);
}

}  // namespace fedpdpo::cpu
#endif
