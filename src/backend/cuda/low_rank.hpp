// Products of per-client low-rank maps on the matrix units, all members and all parts of a block in one launch. Between
// `wide`, (T, width) bf16 activations, and `thin`, (T, rank) f32, lies a client's f32 factor.
//
// bf16 numbers enter as they are, f32 ones as sums of two bf16 ones (fragments.cuh): 16 significant bits where TF32 has
// 11, for the same time on the matrix units. Sums are fp32. A row of `thin` or `wide` has the same bits in any batch
// and for any other members; the factor's gradient depends on the member's own rows alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::cuda {

enum class FactorLayout : std::uint8_t {
  wide_by_thin,  ///< (width, rank), as LoRA's B
  thin_by_wide,  ///< (rank, width), as LoRA's A
};

/// The columns of a part in the matrices of all rows, and its factor of slot 0.
struct LowRankPart {
  std::uint16_t* wide = nullptr;
  float* thin = nullptr;
  float* factor = nullptr;
  std::int64_t slot_stride = 0;
  std::int32_t width = 0, rank = 0;
  bool thin_in_quads = false, factor_in_quads = false;  ///< rows are whole, aligned quads of f32
};

struct LowRankProducts {
  static constexpr int kMostParts = 4;
  LowRankPart parts[kMostParts];
  std::int32_t count = 0;
  FactorLayout layout = FactorLayout::wide_by_thin;
  Write mode = Write::overwrite;
  float alpha = 1;
  std::int32_t wide_stride = 0, thin_stride = 0;
};

/// True where `wide` is bf16 by whole 16 bytes and `thin` is f32: the kernels below take these shapes, whatever the
/// number of rows.
bool is_low_rank(ConstView wide, ConstView thin);
/// A call without parts, and one that has this part. The kernels write to one of a part's three matrices.
LowRankProducts low_rank_call(ConstView wide, ConstView thin, FactorLayout layout, float alpha, Write mode);
void add_part(LowRankProducts& products, ConstView wide, ConstView thin, ConstClientMatrix factor);
LowRankProducts low_rank_product(ConstView wide, ConstView thin, ConstClientMatrix factor, FactorLayout layout,
                                 float alpha, Write mode);

/// thin (+)= alpha wide factor.
void low_rank_down(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                   const LowRankProducts& products);
/// wide (+)= alpha thin factor.
void low_rank_up(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                 const LowRankProducts& products);
/// factor (+)= alpha wide^T thin (or its transpose, by the layout), summed over the member's rows.
void low_rank_outer(cudaStream_t stream, const char* operation, std::span<const MemberRows> members,
                    const LowRankProducts& products);

}  // namespace fedpdpo::cuda
