// The checked public operations on per-client maps, grouped by cohort member.
#include "contract.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

void Backend::grouped_matmul(std::span<const MemberRows> members, Multiply how, float alpha, ConstView x,
                             ConstClientMatrix p, View y, Write mode) {
  const Contract contract("grouped_matmul");
  contract.activations(*this, x, "x").activations(*this, y, "y", x.rows, y.cols).members(members, x.rows);
  contract.require(x.cols > 0 && y.cols > 0, "matrices have columns");
  if (how == Multiply::by_transpose) {
    contract.client(p, "P", y.cols, x.cols);
  } else {
    contract.client(p, "P", x.cols, y.cols);
  }
  do_grouped_matmul(members, how, alpha, x, p, y, mode);
}

void Backend::grouped_outer(std::span<const MemberRows> members, float alpha, ConstView d_y, ConstView x,
                            ClientMatrix d_p, Write mode) {
  const Contract contract("grouped_outer");
  contract.activations(*this, d_y, "d_y").activations(*this, x, "x", d_y.rows, x.cols).members(members, x.rows);
  contract.require(x.cols > 0 && d_y.cols > 0, "matrices have columns").client(d_p, "d_P", d_y.cols, x.cols);
  do_grouped_outer(members, alpha, d_y, x, d_p, mode);
}

void Backend::low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u,
                          std::span<const LowRankSite> sites, View y, Write mode) {
  const Contract contract("low_rank_up");
  contract.matrix(u, "u").activations(*this, y, "y", u.rows, y.cols).members(members, u.rows);
  contract.sites(sites, u.cols, y.cols);
  do_low_rank_up(members, alpha, u, sites, y, mode);
}

void Backend::do_low_rank_up(std::span<const MemberRows> members, float alpha, ConstView u,
                             std::span<const LowRankSite> sites, View y, Write mode) {
  for (const LowRankSite& site : sites)
    do_grouped_matmul(members, Multiply::by_transpose, alpha, u.columns(site.u_begin, site.u_begin + site.b.cols),
                      site.b, y.columns(site.begin, site.end), mode);
}

void Backend::low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                                   std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode) {
  const Contract contract("low_rank_up_backward");
  contract.matrix(u, "u").activations(*this, d_y, "d_y", u.rows, d_y.cols).matrix(d_u, "d_u", u.rows, u.cols);
  contract.members(members, u.rows).sites(sites, u.cols, d_y.cols);
  contract.require(d_u.data != u.data || u.rows == 0, "d_u is not u itself");
  do_low_rank_up_backward(members, alpha, u, sites, d_y, d_u, d_b_mode);
}

void Backend::do_low_rank_up_backward(std::span<const MemberRows> members, float alpha, ConstView u,
                                      std::span<const LowRankSite> sites, ConstView d_y, View d_u, Write d_b_mode) {
  for (const LowRankSite& site : sites) {
    ConstView d_site = d_y.columns(site.begin, site.end);
    const std::int64_t u_end = site.u_begin + site.b.cols;
    do_grouped_matmul(members, Multiply::by_matrix, alpha, d_site, site.b, d_u.columns(site.u_begin, u_end),
                      Write::overwrite);
    if (site.d_b.data != nullptr)
      do_grouped_outer(members, alpha, d_site, u.columns(site.u_begin, u_end), site.d_b, d_b_mode);
  }
}

void Backend::grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) {
  Contract("grouped_add_bias").matrix(y, "y").members(members, y.rows).client(b, "b", 1, y.cols);
  if (y.cols > 0) do_grouped_add_bias(members, b, y);
}

void Backend::grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b, Write mode) {
  Contract("grouped_column_sum").matrix(d_y, "d_y").members(members, d_y.rows).client(d_b, "d_b", 1, d_y.cols);
  if (d_y.cols > 0) do_grouped_column_sum(members, d_y, d_b, mode);
}

void Backend::grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g, View z) {
  const Contract contract("grouped_gate");
  contract.matrix(h, "h").matrix(a, "a", h.rows, h.cols).matrix(z, "z", h.rows, h.cols);
  contract.members(members, h.rows).client(g, "g", 1, h.cols);
  if (h.cols > 0) do_grouped_gate(members, h, a, g, z);
}

void Backend::grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                                    ConstView d_z, View d_h, Write d_h_mode, View d_a, ClientMatrix d_g,
                                    Write d_g_mode) {
  const Contract contract("grouped_gate_backward");
  contract.matrix(h, "h").matrix(a, "a", h.rows, h.cols).matrix(d_z, "d_z", h.rows, h.cols);
  contract.matrix(d_h, "d_h", h.rows, h.cols).matrix(d_a, "d_a", h.rows, h.cols);
  contract.members(members, h.rows).client(g, "g", 1, h.cols).client(d_g, "d_g", 1, h.cols);
  if (h.cols > 0) do_grouped_gate_backward(members, h, a, g, d_z, d_h, d_h_mode, d_a, d_g, d_g_mode);
}

}  // namespace fedpdpo
