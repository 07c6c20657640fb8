// Low-rank maps of a block's sites on the matrix units, and what they take.
#include <algorithm>

#include "cuda/cuda_backend.hpp"
#include "cuda/low_rank.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cuda {
namespace {

bool at_16_bytes(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

/// run(products) of as many sites as a launch takes: add(products, site) adds what a site has to them.
template <class Add, class Run>
void by_sites(std::span<const LowRankSite> sites, const LowRankProducts& call, Add add, Run run) {
  for (std::size_t first = 0; first < sites.size(); first += LowRankProducts::kMostParts) {
    LowRankProducts products = call;
    for (std::size_t i = first; i < std::min(sites.size(), first + LowRankProducts::kMostParts); ++i)
      add(products, sites[i]);
    if (products.count > 0) run(products);
  }
}

}  // namespace

bool is_low_rank(ConstView wide, ConstView thin) {
  return wide.dtype == DType::bf16 && thin.dtype == DType::f32 && wide.cols % 8 == 0 && wide.stride % 8 == 0 &&
         at_16_bytes(wide.data) && wide.stride <= INT32_MAX / 64 && thin.stride <= INT32_MAX / 64;
}

LowRankProducts low_rank_call(ConstView wide, ConstView thin, FactorLayout layout, float alpha, Write mode) {
  LowRankProducts products;
  products.layout = layout;
  products.mode = mode;
  products.alpha = alpha;
  products.wide_stride = static_cast<std::int32_t>(wide.stride);
  products.thin_stride = static_cast<std::int32_t>(thin.stride);
  return products;
}

void add_part(LowRankProducts& products, ConstView wide, ConstView thin, ConstClientMatrix factor) {
  check(products.count < LowRankProducts::kMostParts, "low-rank products of too many parts for one launch");
  LowRankPart& part = products.parts[products.count++];
  part.wide = static_cast<std::uint16_t*>(const_cast<void*>(wide.data));
  part.thin = const_cast<float*>(thin.f32());
  part.factor = const_cast<float*>(factor.data);
  part.slot_stride = factor.slot_stride;
  part.width = static_cast<std::int32_t>(wide.cols);
  part.rank = static_cast<std::int32_t>(thin.cols);
  part.thin_in_quads = at_16_bytes(thin.data) && thin.stride % 4 == 0 && thin.cols % 4 == 0;
  part.factor_in_quads = at_16_bytes(factor.data) && factor.slot_stride % 4 == 0 && factor.cols % 4 == 0;
}

LowRankProducts low_rank_product(ConstView wide, ConstView thin, ConstClientMatrix factor, FactorLayout layout,
                                 float alpha, Write mode) {
  LowRankProducts products = low_rank_call(wide, thin, layout, alpha, mode);
  add_part(products, wide, thin, factor);
  return products;
}

void CudaBackend::do_low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u,
                                 std::span<const LowRankSite> sites, View y, Write mode) {
  const auto wide = [&](const LowRankSite& site) { return ConstView(y).columns(site.begin, site.end); };
  const auto thin = [&](const LowRankSite& site) { return u.columns(site.u_begin, site.u_begin + site.b.cols); };
  for (const LowRankSite& site : sites)
    if (!is_low_rank(wide(site), thin(site))) return Backend::do_low_rank_up(members, alpha, u, sites, y, mode);
  by_sites(
      sites, low_rank_call(y, u, FactorLayout::wide_by_thin, alpha, mode),
      [&](LowRankProducts& products, const LowRankSite& site) { add_part(products, wide(site), thin(site), site.b); },
      [&](const LowRankProducts& products) { cuda::low_rank_up(stream(), "low_rank_up", members, products); });
  for (const LowRankSite& site : sites) written("low_rank_up", members, {wide(site)});
}

void CudaBackend::do_low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                                          std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode) {
  const auto wide = [&](const LowRankSite& site) { return d_y.columns(site.begin, site.end); };
  const auto columns = [](ConstView x, const LowRankSite& site) {
    return x.columns(site.u_begin, site.u_begin + site.b.cols);
  };
  for (const LowRankSite& site : sites)
    if (!is_low_rank(wide(site), columns(u, site)) || !is_low_rank(wide(site), columns(d_u, site)))
      return Backend::do_low_rank_up_backward(members, alpha, u, sites, d_y, d_u, d_b_mode);
  constexpr const char* kOperation = "low_rank_up_backward";
  by_sites(
      sites, low_rank_call(d_y, d_u, FactorLayout::wide_by_thin, alpha, Write::overwrite),
      [&](LowRankProducts& products, const LowRankSite& site) {
        add_part(products, wide(site), columns(d_u, site), site.b);
      },
      [&](const LowRankProducts& products) { cuda::low_rank_down(stream(), kOperation, members, products); });
  by_sites(
      sites, low_rank_call(d_y, u, FactorLayout::wide_by_thin, alpha, d_b_mode),
      [&](LowRankProducts& products, const LowRankSite& site) {
        if (site.d_b.data != nullptr) add_part(products, wide(site), columns(u, site), site.d_b);
      },
      [&](const LowRankProducts& products) { cuda::low_rank_outer(stream(), kOperation, members, products); });
  for (const LowRankSite& site : sites) {
    written(kOperation, members, {columns(d_u, site)});
    if (site.d_b.data != nullptr) written(kOperation, members, site.d_b);
  }
}

}  // namespace fedpdpo::cuda
