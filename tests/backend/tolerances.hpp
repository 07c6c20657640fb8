// How far a backend may be from the double reference: norm of the difference over norm of the reference.
#pragma once

namespace fedpdpo::tolerance {

inline constexpr double kExact = 0;            ///< moves and masks: embed, gather, copy, dropout's zeros
inline constexpr double kElementwise = 4e-7;   ///< a few roundings an element: axpy, bias, gate, rotate, norms
inline constexpr double kActivation = 1e-6;    ///< exp to 1 ulp, erf to 1e-7 absolute
inline constexpr double kProduct = 2e-6;       ///< sums of up to some thousand fp32 terms
inline constexpr double kAttention = 4e-6;     ///< a product, exponentials and a second product
inline constexpr double kGradient = 1e-5;      ///< fp32 backward against central differences in double
inline constexpr double kLogProb = 4e-7;       ///< log-sum-exp over 49152 terms: a rounding of the result, and a little
inline constexpr double kAdamW = 1e-6;         ///< a square root and a quotient, several steps
inline constexpr double kSquaredNorm = 2e-13;  ///< double, against a plain running sum
/// A bf16 output is the fp32 number, rounded: 2^-8 of an element at most.
inline constexpr double kBf16Output = 4e-3;
/// bf16 weights are exact in the reference; activations are rounded to bf16 (8 bits: 2^-9 an element, averaged by
/// sums).
inline constexpr double kProductBf16 = 4e-3;
/// The same against a reference whose activations are rounded alike: only the fp32 sum is left.
inline constexpr double kProductBf16Rounded = 2e-6;
/// Products of bf16 rows, exact in the reference, and f32 factors of which 16 bits enter (2^-18 an element at most,
/// 2^-17 where both are f32), summed in fp32.
inline constexpr double kLowRank = 5e-6;
/// The share of bf16 results that need not be the bf16 number nearest to the reference: those whose neighbours are
/// almost as near, within the error above out of half a step of bf16 (2^-9).
inline constexpr double kNotNearestBf16 = 1e-2;
/// Attention of bf16 rows, by rows of a head: the result's own rounding (2^-9 of an element at most) and that of the
/// weights, whose errors do not average out where few keys have all the weight; backward also of the weights'
/// gradients, which cancel in dQ and dK.
inline constexpr double kAttentionBf16 = 6e-3;
inline constexpr double kAttentionGradientBf16 = 1e-2;
/// The same against differences of a forward that is not rounded, as it is in D = rowsum(dO * O).
inline constexpr double kAttentionGradientBf16Unrounded = 3e-2;
/// Whole training steps, one backend against another: gradients and values of every parameter group together.
inline constexpr double kTrainingStep = 3e-5;
inline constexpr double kTrainingStepBf16 = 2e-2;

}  // namespace fedpdpo::tolerance
