// The CPU's operations by rows or by columns: checks of the indices that a row reads, cuts over threads, the kernels.
#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo::cpu {
namespace {

void check_indices(ConstView indices, std::int64_t bound, const char* message) {
  const std::int32_t* i = indices.i32();
  check(std::all_of(i, i + indices.cols, [&](std::int32_t index) { return index >= 0 && index < bound; }), message);
}

constexpr std::int64_t kColumnGrain = 64;

ConstView matrix_of(ConstClientMatrix p, std::int32_t slot) {
  return view_of(p.data + slot * p.slot_stride, p.rows, p.cols);
}
View matrix_of(ClientMatrix p, std::int32_t slot) { return view_of(p.data + slot * p.slot_stride, p.rows, p.cols); }

}  // namespace

template <class Body>
void CpuBackend::over_rows(std::int64_t rows, std::int64_t cols, Body body) const {
  parallel_ranges(num_threads_, rows, rows * cols, body);
}

template <class Body>
void CpuBackend::over_columns(std::int64_t rows, std::int64_t cols, Body body) const {
  parallel_ranges(num_threads_, cols, rows * cols, body, kColumnGrain);
}

void CpuBackend::do_fill(View y, float value) {
  if (y.rows == 1) {
    over_columns(1, y.cols, [&](std::int64_t b, std::int64_t e) { cpu::fill(y.columns(b, e), value); });
  } else {
    over_rows(y.rows, y.cols, [&](std::int64_t b, std::int64_t e) { cpu::fill(y.row_range(b, e), value); });
  }
}

void CpuBackend::do_copy(ConstView x, View y) {
  over_rows(x.rows, x.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const ConstView from = x.row_range(r, r + 1);
      const View to = y.row_range(r, r + 1);
      if (x.dtype == y.dtype) {
        std::memmove(to.data, from.data, static_cast<std::size_t>(x.cols) * dtype_size(x.dtype));
      } else if (x.dtype == DType::f32) {
        round_to_bf16(from.f32(), x.cols, static_cast<std::uint16_t*>(to.data));
      } else {
        widen_bf16(static_cast<const std::uint16_t*>(from.data), x.cols, to.f32());
      }
    }
  });
}

void CpuBackend::do_embed(ConstView tokens, ConstView positions, ConstView table, ConstView position_table, View y) {
  check_indices(tokens, table.rows, "embed: token outside of the table");
  if (position_table.rows > 0) check_indices(positions, position_table.rows, "embed: position outside of the table");
  const auto copy_row = [&](ConstView from, std::int64_t row, float* to) {
    if (from.dtype == DType::bf16) {
      widen_bf16(static_cast<const std::uint16_t*>(from.data) + row * from.stride, from.cols, to);
    } else {
      std::memcpy(to, from.f32() + row * from.stride, static_cast<std::size_t>(from.cols) * sizeof(float));
    }
  };
  over_rows(y.rows, y.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* row = y.f32() + t * y.stride;
      copy_row(table, tokens.i32()[t], row);
      if (position_table.rows == 0) continue;
      const std::int64_t position = positions.i32()[t];
      if (position_table.dtype == DType::f32) {
        add_bias(view_of(position_table.f32() + position * position_table.stride, 1, y.cols), view_of(row, 1, y.cols));
      } else {
        constexpr std::int64_t kChunk = 256;
        float wide[kChunk];
        const auto* p = static_cast<const std::uint16_t*>(position_table.data) + position * position_table.stride;
        for (std::int64_t c = 0; c < y.cols; c += kChunk) {
          const std::int64_t count = std::min(kChunk, y.cols - c);
          widen_bf16(p + c, count, wide);
          add_bias(view_of(static_cast<const float*>(wide), 1, count), view_of(row + c, 1, count));
        }
      }
    }
  });
}

void CpuBackend::do_rms_norm(ConstView x, ConstView w, float eps, View y) {
  over_rows(x.rows, x.cols,
            [&](std::int64_t b, std::int64_t e) { cpu::rms_norm(x.row_range(b, e), w, eps, y.row_range(b, e)); });
}

void CpuBackend::do_rms_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::rms_norm_backward(x.row_range(b, e), w, eps, d_y.row_range(b, e), d_x.row_range(b, e), mode);
  });
}

void CpuBackend::do_head_norm(ConstView x, ConstView w, std::int32_t head_dim, float eps, View y) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::head_norm(x.row_range(b, e), w, head_dim, eps, y.row_range(b, e));
  });
}

void CpuBackend::do_head_norm_backward(ConstView x, ConstView w, std::int32_t head_dim, float eps, ConstView d_y,
                                       View d_x) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::head_norm_backward(x.row_range(b, e), w, head_dim, eps, d_y.row_range(b, e), d_x.row_range(b, e));
  });
}

void CpuBackend::do_layer_norm(ConstView x, ConstView w, ConstView b, float eps, View y) {
  over_rows(x.rows, x.cols, [&](std::int64_t begin, std::int64_t end) {
    cpu::layer_norm(x.row_range(begin, end), w, b, eps, y.row_range(begin, end));
  });
}

void CpuBackend::do_layer_norm_backward(ConstView x, ConstView w, float eps, ConstView d_y, View d_x, Write mode) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::layer_norm_backward(x.row_range(b, e), w, eps, d_y.row_range(b, e), d_x.row_range(b, e), mode);
  });
}

void CpuBackend::do_axpy(float alpha, ConstView x, View y, Write mode) {
  if (x.rows == 1) {
    over_columns(1, x.cols,
                 [&](std::int64_t b, std::int64_t e) { cpu::axpy(alpha, x.columns(b, e), y.columns(b, e), mode); });
  } else {
    over_rows(x.rows, x.cols,
              [&](std::int64_t b, std::int64_t e) { cpu::axpy(alpha, x.row_range(b, e), y.row_range(b, e), mode); });
  }
}

void CpuBackend::do_scale_rows(ConstView weights, View x) {
  over_rows(x.rows, x.cols,
            [&](std::int64_t b, std::int64_t e) { cpu::scale_rows(weights.f32() + b, x.row_range(b, e)); });
}

void CpuBackend::do_gather_rows(ConstView x, ConstView rows, View y) {
  check_indices(rows, x.rows, "gather_rows: row outside of x");
  over_rows(y.rows, y.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(y.f32() + i * y.stride, x.f32() + rows.i32()[i] * x.stride,
                  static_cast<std::size_t>(x.cols) * sizeof(float));
    }
  });
}

void CpuBackend::do_scatter_add_rows(ConstView x, ConstView rows, View y) {
  check_indices(rows, y.rows, "scatter_add_rows: row outside of y");
  over_columns(x.rows, x.cols, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < x.rows; ++i) {
      const std::int64_t row = rows.i32()[i];
      cpu::axpy(1, x.row_range(i, i + 1).columns(begin, end), y.row_range(row, row + 1).columns(begin, end),
                Write::accumulate);
    }
  });
}

void CpuBackend::do_grouped_add_bias(std::span<const MemberRows> members, ConstClientMatrix b, View y) {
  for (const MemberRows& member : members) {
    const View part = y.row_range(member.begin, member.end);
    over_rows(part.rows, part.cols, [&](std::int64_t begin, std::int64_t end) {
      cpu::add_bias(matrix_of(b, member.slot), part.row_range(begin, end));
    });
  }
}

void CpuBackend::do_grouped_column_sum(std::span<const MemberRows> members, ConstView d_y, ClientMatrix d_b,
                                       Write mode) {
  for (const MemberRows& member : members) {
    const ConstView part = d_y.row_range(member.begin, member.end);
    const View out = matrix_of(d_b, member.slot);
    over_columns(part.rows, part.cols, [&](std::int64_t begin, std::int64_t end) {
      cpu::column_sum(part.columns(begin, end), out.columns(begin, end), mode);
    });
  }
}

void CpuBackend::do_grouped_gate(std::span<const MemberRows> members, ConstView h, ConstView a, ConstClientMatrix g,
                                 View z) {
  for (const MemberRows& member : members) {
    over_rows(member.end - member.begin, h.cols, [&](std::int64_t b, std::int64_t e) {
      const std::int64_t begin = member.begin + b, end = member.begin + e;
      cpu::gate(h.row_range(begin, end), a.row_range(begin, end), matrix_of(g, member.slot), z.row_range(begin, end));
    });
  }
}

void CpuBackend::do_grouped_gate_backward(std::span<const MemberRows> members, ConstView h, ConstView a,
                                          ConstClientMatrix g, ConstView d_z, View d_h, Write d_h_mode, View d_a,
                                          ClientMatrix d_g, Write d_g_mode) {
  for (const MemberRows& member : members) {
    const auto part = [&](auto view, std::int64_t b, std::int64_t e) {
      return view.row_range(member.begin, member.end).columns(b, e);
    };
    over_columns(member.end - member.begin, h.cols, [&](std::int64_t b, std::int64_t e) {
      cpu::gate_backward(part(h, b, e), part(a, b, e), matrix_of(g, member.slot).columns(b, e), part(d_z, b, e),
                         part(d_h, b, e), d_h_mode, part(d_a, b, e), matrix_of(d_g, member.slot).columns(b, e),
                         d_g_mode);
    });
  }
}

void CpuBackend::do_rotate(ConstView positions, ConstView cos, ConstView sin, std::int32_t head_dim, Rotation direction,
                           View x) {
  check_indices(positions, cos.rows, "rotate: position outside of the table");
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::rotate(positions.i32() + b, cos, sin, head_dim, direction, x.row_range(b, e));
  });
}

void CpuBackend::do_gated_activation(Activation kind, ConstView x, View y) {
  over_rows(x.rows, x.cols,
            [&](std::int64_t b, std::int64_t e) { cpu::gated_activation(kind, x.row_range(b, e), y.row_range(b, e)); });
}

void CpuBackend::do_gated_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::gated_activation_backward(kind, x.row_range(b, e), d_y.row_range(b, e), d_x.row_range(b, e),
                                   y.rows > 0 ? y.row_range(b, e) : y);
  });
}

void CpuBackend::do_activation(Activation kind, ConstView x, View y) {
  over_rows(x.rows, x.cols,
            [&](std::int64_t b, std::int64_t e) { cpu::activation(kind, x.row_range(b, e), y.row_range(b, e)); });
}

void CpuBackend::do_activation_backward(Activation kind, ConstView x, ConstView d_y, View d_x, View y) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::activation_backward(kind, x.row_range(b, e), d_y.row_range(b, e), d_x.row_range(b, e),
                             y.rows > 0 ? y.row_range(b, e) : y);
  });
}

void CpuBackend::do_dropout(float p, const StreamId& id, std::int64_t first_row, ConstView x, View y, Write mode) {
  over_rows(x.rows, x.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::dropout(p, id, first_row + b, x.row_range(b, e), y.row_range(b, e), mode);
  });
}

void CpuBackend::do_log_softmax(ConstView logits, ConstView targets, View log_prob, View lse) {
  check_indices(targets, logits.cols, "log_softmax: target outside of the vocabulary");
  over_rows(logits.rows, logits.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::log_softmax(logits.row_range(b, e), targets.i32() + b, log_prob.f32() + b, lse.f32() + b);
  });
}

void CpuBackend::do_log_softmax_backward(ConstView targets, ConstView lse, ConstView coefficient, ConstView logits,
                                         View d_logits) {
  check_indices(targets, logits.cols, "log_softmax_backward: target outside of the vocabulary");
  over_rows(logits.rows, logits.cols, [&](std::int64_t b, std::int64_t e) {
    cpu::log_softmax_backward(targets.i32() + b, lse.f32() + b, coefficient.f32() + b, logits.row_range(b, e),
                              d_logits.row_range(b, e));
  });
}

void CpuBackend::do_adamw(const AdamW& options, View values, ConstView gradients, View first_moment,
                          View second_moment) {
  if (values.rows == 1) {
    over_columns(1, values.cols, [&](std::int64_t b, std::int64_t e) {
      cpu::adamw(options, values.columns(b, e), gradients.columns(b, e), first_moment.columns(b, e),
                 second_moment.columns(b, e));
    });
  } else {
    over_rows(values.rows, values.cols, [&](std::int64_t b, std::int64_t e) {
      cpu::adamw(options, values.row_range(b, e), gradients.row_range(b, e), first_moment.row_range(b, e),
                 second_moment.row_range(b, e));
    });
  }
}

double CpuBackend::do_dot(ConstView x, ConstView y) {
  // Blocks of one length, added in order: the same bits for any number of threads.
  constexpr std::int64_t kBlock = 4096;
  const bool flat = x.contiguous() && y.contiguous();
  const std::int64_t length = flat ? x.size() : x.cols;
  const std::int64_t rows = flat ? 1 : x.rows;
  const std::int64_t per_row = (length + kBlock - 1) / kBlock;
  double* sums = partial_sums_.get(static_cast<std::size_t>(rows * per_row));
  parallel_ranges(num_threads_, rows * per_row, rows * length, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i / per_row, first = i % per_row * kBlock;
      sums[i] = sum_of_products(x.f32() + row * x.stride + first, y.f32() + row * y.stride + first,
                                std::min(kBlock, length - first));
    }
  });
  double total = 0;
  for (std::int64_t i = 0; i < rows * per_row; ++i) total += sums[i];
  return total;
}

}  // namespace fedpdpo::cpu
