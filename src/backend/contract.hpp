// What the checked public operations look at: shapes, strides and dtypes of what they are given.
#pragma once

#include <cstdint>
#include <source_location>
#include <span>
#include <string>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

/// Checks of one operation, named in every message.
class Contract {
 public:
  explicit Contract(const char* operation, std::source_location where = std::source_location::current())
      : operation_(operation), where_(where) {}

  const Contract& require(bool condition, const char* what) const {
    if (!condition) [[unlikely]]
      fail(what);
    return *this;
  }
  /// A readable matrix of this dtype.
  const Contract& matrix(ConstView x, const char* name, DType dtype = DType::f32) const {
    if (x.dtype != dtype) [[unlikely]]
      fail(std::string(name) + ": expected " + dtype_name(dtype) + ", found " + dtype_name(x.dtype));
    return layout(x, name);
  }
  const Contract& matrix(ConstView x, const char* name, std::int64_t rows, std::int64_t cols,
                         DType dtype = DType::f32) const {
    matrix(x, name, dtype);
    if (x.rows != rows || x.cols != cols) [[unlikely]] {
      fail(std::string(name) + ": expected " + shape_text(rows, cols) + ", found " + shape_text(x.rows, x.cols));
    }
    return *this;
  }
  /// f32, or bf16 where the backend takes it.
  const Contract& activations(const Backend& backend, ConstView x, const char* name) const {
    if (x.dtype == DType::bf16 && !backend.supports_bf16_activations()) [[unlikely]]
      fail(std::string(name) + ": the " + backend.name() + " backend takes activations in f32 only, found bf16");
    if (x.dtype != DType::f32 && x.dtype != DType::bf16) [[unlikely]]
      fail(std::string(name) + ": expected f32 or bf16, found " + dtype_name(x.dtype));
    return layout(x, name);
  }
  const Contract& activations(const Backend& backend, ConstView x, const char* name, std::int64_t rows,
                              std::int64_t cols) const {
    return activations(backend, x, name).matrix(x, name, rows, cols, x.dtype);
  }
  /// One row whose elements an i32 can count.
  const Contract& vector(ConstView x, const char* name, DType dtype) const {
    matrix(x, name, 1, x.cols, dtype);
    return require(x.cols <= INT32_MAX, "at most 2^31 - 1 elements");
  }
  /// f32 or bf16.
  const Contract& weights(ConstView w, const char* name) const {
    require(w.dtype == DType::f32 || w.dtype == DType::bf16, "weights are f32 or bf16");
    return layout(w, name);
  }
  const Contract& layout(ConstView x, const char* name) const {
    if (x.rows < 0 || x.cols < 0 || (x.rows > 1 && x.stride < x.cols) || (x.data == nullptr && x.size() > 0))
        [[unlikely]] {
      fail(std::string(name) + ": not a matrix (negative size, stride below the columns, or no memory)");
    }
    return *this;
  }
  /// Rows in order, disjoint, within `rows`.
  const Contract& members(std::span<const MemberRows> members, std::int64_t rows) const {
    std::int32_t last = 0;
    for (const MemberRows& member : members) {
      require(member.begin >= last && member.end >= member.begin && member.end <= rows && member.slot >= 0,
              "members: rows in order, disjoint and within the matrix");
      last = member.end;
    }
    return *this;
  }
  const Contract& client(ConstClientMatrix p, const char* name, std::int64_t rows, std::int64_t cols) const {
    if (p.rows != rows || p.cols != cols) [[unlikely]] {
      fail(std::string(name) + ": expected " + shape_text(rows, cols) + ", found " + shape_text(p.rows, p.cols));
    }
    return require(p.data != nullptr || rows * cols == 0, "client matrix without memory");
  }
  /// Columns in order within u and y, factors of one shape with their gradients.
  const Contract& sites(std::span<const LowRankSite> sites, std::int64_t u_cols, std::int64_t y_cols) const {
    std::int64_t u_last = 0, y_last = 0;
    for (const LowRankSite& site : sites) {
      require(site.u_begin >= u_last && site.begin >= y_last && site.end > site.begin && site.b.cols > 0,
              "sites: columns in order, disjoint and not empty");
      u_last = site.u_begin + site.b.cols;
      y_last = site.end;
      require(u_last <= u_cols && y_last <= y_cols, "sites: columns lie within u and y");
      client(site.b, "B", site.end - site.begin, site.b.cols);
      if (site.d_b.data != nullptr) client(site.d_b, "d_B", site.b.rows, site.b.cols);
    }
    return *this;
  }
  const Contract& rotary(const RotaryRows& tables, std::int64_t rows, std::int64_t head_dim) const {
    matrix(tables.positions, "positions", 1, rows, DType::i32).matrix(tables.cos, "cos");
    matrix(tables.sin, "sin", tables.cos.rows, tables.cos.cols);
    return require(2 * tables.cos.cols <= head_dim, "the rotary part lies within a head");
  }
  const Contract& attention(const AttentionPlan& plan, const AttentionShape& shape, ConstView qkv) const {
    require(shape.head_dim > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 &&
                shape.num_heads > 0,
            "heads: a positive multiple of the kv heads");
    matrix(qkv, "qkv", qkv.rows, std::int64_t{shape.num_heads + 2 * shape.num_kv_heads} * shape.head_dim, qkv.dtype);
    require(!plan.group_offsets.empty() && plan.group_offsets.front() == 0 &&
                plan.group_offsets.back() == static_cast<std::int32_t>(plan.segments.size()),
            "plan: group offsets run from 0 to the number of segments");
    std::int64_t row = 0;
    for (std::size_t g = 0; g + 1 < plan.group_offsets.size(); ++g) {
      require(plan.group_offsets[g] <= plan.group_offsets[g + 1], "plan: group offsets ascend");
      const std::int64_t first = row;
      for (std::int32_t s = plan.group_offsets[g]; s < plan.group_offsets[g + 1]; ++s) {
        const Segment& segment = plan.segments[s];
        require(segment.begin == row && segment.end >= segment.begin, "plan: segments follow one another");
        require(segment.context_begin <= segment.context_end, "plan: context of negative length");
        require(segment.context_begin == segment.context_end ||
                    (segment.context_begin >= first && segment.context_end <= segment.begin),
                "plan: context lies before its segment, within the group");
        row = segment.end;
      }
    }
    return require(row == qkv.rows, "plan: segments cover all rows");
  }

 private:
  static std::string shape_text(std::int64_t rows, std::int64_t cols) {
    return std::string(1, '(').append(std::to_string(rows)).append(", ").append(std::to_string(cols)).append(")");
  }
  [[noreturn]] void fail(const std::string& what) const { contract_violation(operation_, what, where_); }

  const char* operation_;
  std::source_location where_;
};

}  // namespace fedpdpo
