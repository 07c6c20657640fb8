// Loops over the columns of a row by vectors, the last one partial: compiled once per Highway target.
// A functor gets (io, column): io.load, io.store, io.keep (others zero) and io.keep_or
// act on a full vector or on the row's last columns only.
#include "cpu/simd.hpp"

#if defined(FEDPDPO_CPU_SIMD_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef FEDPDPO_CPU_SIMD_INL
#undef FEDPDPO_CPU_SIMD_INL
#else
#define FEDPDPO_CPU_SIMD_INL
#endif

#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fedpdpo::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using Vec = hn::Vec<Floats>;
inline constexpr std::int64_t kLanes = HWY_LANES(float);

HWY_INLINE Vec load_first(const float* p, std::size_t count) {
#if HWY_MEM_OPS_MIGHT_FAULT
  alignas(64) float buffer[kLanes] = {};
  std::memcpy(buffer, p, count * sizeof(float));
  return hn::Load(Floats(), buffer);
#else
  return hn::MaskedLoad(hn::FirstN(Floats(), count), Floats(), p);
#endif
}

HWY_INLINE void store_first(Vec v, float* p, std::size_t count) {
#if HWY_MEM_OPS_MIGHT_FAULT
  alignas(64) float buffer[kLanes];
  hn::Store(v, Floats(), buffer);
  std::memcpy(p, buffer, count * sizeof(float));
#else
  hn::BlendedStore(v, hn::FirstN(Floats(), count), Floats(), p);
#endif
}

struct FullIo {
  HWY_INLINE Vec load(const float* p) const { return hn::LoadU(Floats(), p); }
  HWY_INLINE void store(Vec v, float* p) const { hn::StoreU(v, Floats(), p); }
  HWY_INLINE Vec keep(Vec v) const { return v; }
  HWY_INLINE Vec keep_or(Vec v, Vec) const { return v; }
};

struct PartIo {
  std::size_t count;
  HWY_INLINE Vec load(const float* p) const { return load_first(p, count); }
  HWY_INLINE void store(Vec v, float* p) const { store_first(v, p, count); }
  HWY_INLINE Vec keep(Vec v) const { return hn::IfThenElseZero(hn::FirstN(Floats(), count), v); }
  HWY_INLINE Vec keep_or(Vec v, Vec other) const { return hn::IfThenElse(hn::FirstN(Floats(), count), v, other); }
};

HWY_INLINE Vec splat(float value) { return hn::Set(Floats(), value); }

template <class Visit>
HWY_INLINE void for_columns(std::int64_t cols, Visit visit) {
  std::int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) visit(FullIo(), c);
  if (c < cols) visit(PartIo{static_cast<std::size_t>(cols - c)}, c);
}

/// Sum over the columns of term(io, column), by four partial sums a lane.
template <class Term>
HWY_INLINE float sum_columns(std::int64_t cols, Term term) {
  Vec s0 = hn::Zero(Floats()), s1 = s0, s2 = s0, s3 = s0;
  std::int64_t c = 0;
  for (; c + 4 * kLanes <= cols; c += 4 * kLanes) {
    s0 = hn::Add(s0, term(FullIo(), c));
    s1 = hn::Add(s1, term(FullIo(), c + kLanes));
    s2 = hn::Add(s2, term(FullIo(), c + 2 * kLanes));
    s3 = hn::Add(s3, term(FullIo(), c + 3 * kLanes));
  }
  for (; c + kLanes <= cols; c += kLanes) s0 = hn::Add(s0, term(FullIo(), c));
  if (c < cols) {
    const PartIo part{static_cast<std::size_t>(cols - c)};
    s1 = hn::Add(s1, part.keep(term(part, c)));
  }
  return hn::GetLane(hn::SumOfLanes(Floats(), hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

}  // namespace fedpdpo::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
