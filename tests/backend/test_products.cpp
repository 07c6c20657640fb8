// Frozen linear maps and per-client maps against the reference.
#include "fixture.hpp"

namespace fedpdpo {
namespace {

class Products : public OperationTest {};
FEDPDPO_ON_EVERY_BACKEND(Products);

struct LinearShape {
  std::int64_t rows, in, out;
};
constexpr LinearShape kLinear[] = {{1, 1, 1},      {1, 64, 64},   {2, 7, 9},     {5, 33, 17},
                                   {13, 64, 128},  {12, 64, 172}, {12, 172, 64}, {9, 130, 515},
                                   {40, 288, 300}, {3, 576, 192}, {65, 64, 512}, {33, 200, 640}};

// Members of a batch of 23 rows: one row, none, many, and rows that belong to nobody.
const std::vector<MemberRows> kMembers = {{0, 1, 2}, {1, 1, 0}, {1, 14, 3}, {16, 23, 1}};
constexpr std::int64_t kBatch = 23;

TEST_P(Products, Linear) {
  for (const auto [rows, in, out] : kLinear) {
    const Matrix x = random(rows, in), w = random(out, in), bias = random(1, out), before = random(rows, out);
    const Matrix product = reference::linear(x, w, {});
    Buffer y = poisoned(rows, out, 1, 3);
    backend_->linear(put(x, 2, 1).view, put(w, 0, 1).view, {}, y.view, Write::overwrite);
    expect_close(product, y, tolerance::kProduct);
    y = poisoned(rows, out, 1, 3);
    backend_->linear(put(x, 2, 1).view, put(w).view, put(bias).view, y.view, Write::overwrite);
    expect_close(reference::linear(x, w, bias), y, tolerance::kProduct);
    y = put(before, 1, 3);
    backend_->linear(put(x).view, put(w).view, {}, y.view, Write::accumulate);
    expect_close(add(before, product), y, tolerance::kProduct);
    y = put(before, 1, 3);
    backend_->linear(put(x).view, put(w).view, put(bias).view, y.view, Write::accumulate);
    expect_close(add(before, reference::linear(x, w, bias)), y, tolerance::kProduct);
  }
}

TEST_P(Products, LinearBackward) {
  for (const auto [rows, in, out] : kLinear) {
    const Matrix d_y = random(rows, out), w = random(out, in), before = random(rows, in);
    // linear is linear: the gradient at zero by differences would be the same sums, so take one row's only.
    const Matrix expected = reference::multiply(d_y, w);
    Buffer d_x = poisoned(rows, in, 1, 3);
    backend_->linear_backward(put(d_y, 2, 1).view, put(w, 0, 1).view, d_x.view, Write::overwrite);
    expect_close(expected, d_x, tolerance::kProduct);
    d_x = put(before, 1, 3);
    backend_->linear_backward(put(d_y).view, put(w).view, d_x.view, Write::accumulate);
    expect_close(add(before, expected), d_x, tolerance::kProduct);
  }
}

TEST_P(Products, AddingToZerosGivesTheBitsOfTheProductAlone) {
  for (const auto [rows, in, out] : kLinear) {
    const Matrix x = random(rows, in), w = random(out, in), d_y = random(rows, out);
    for (const bool half : {false, true}) {
      const Buffer weights = half ? put_bf16(w) : put(w);
      Buffer alone = poisoned(rows, out), added = put(Matrix(rows, out));
      backend_->linear(put(x).view, weights.view, {}, alone.view, Write::overwrite);
      backend_->linear(put(x).view, weights.view, {}, added.view, Write::accumulate);
      EXPECT_EQ(get(alone).values, get(added).values) << rows << " rows, " << in << " to " << out;
      alone = poisoned(rows, in), added = put(Matrix(rows, in));
      backend_->linear_backward(put(d_y).view, weights.view, alone.view, Write::overwrite);
      backend_->linear_backward(put(d_y).view, weights.view, added.view, Write::accumulate);
      EXPECT_EQ(get(alone).values, get(added).values) << rows << " rows, " << out << " to " << in;
    }
  }
}

TEST_P(Products, LinearBackwardIsTheGradient) {
  const Matrix x = random(3, 9), w = random(5, 9), d_y = random(3, 5);
  const Matrix expected =
      reference::gradient([&](const Matrix& at) { return dot(reference::linear(at, w, {}), d_y); }, x);
  Buffer d_x = poisoned(3, 9);
  backend_->linear_backward(put(d_y).view, put(w).view, d_x.view, Write::overwrite);
  expect_close(expected, d_x, tolerance::kGradient);
}

TEST_P(Products, LinearBf16) {
  for (const auto [rows, in, out] : kLinear) {
    const Matrix x = random(rows, in), w = rounded_to_bf16(random(out, in)), bias = random(1, out);
    const Matrix before = random(rows, out), d_y = random(rows, out), d_x_before = random(rows, in);
    const auto check_product = [&](const Matrix& exact, const Matrix& rounded, const Buffer& found) {
      const Matrix values = get(found);
      EXPECT_LE(std::min(distance(exact, values), distance(rounded, values)), tolerance::kProductBf16Rounded)
          << rows << " rows, " << in << " to " << out << ": "
          << where_it_differs(rounded, values, tolerance::kProductBf16Rounded);
      if (rows > 4) expect_close(exact, found, tolerance::kProductBf16);
    };
    const Matrix x_rounded = rounded_to_bf16(x), d_y_rounded = rounded_to_bf16(d_y);
    Buffer y = poisoned(rows, out, 1, 3);
    backend_->linear(put(x, 2, 1).view, put_bf16(w, 1).view, put(bias).view, y.view, Write::overwrite);
    check_product(reference::linear(x, w, bias), reference::linear(x_rounded, w, bias), y);
    y = put(before, 1, 3);
    backend_->linear(put(x).view, put_bf16(w).view, {}, y.view, Write::accumulate);
    check_product(add(before, reference::linear(x, w, {})), add(before, reference::linear(x_rounded, w, {})), y);
    Buffer d_x = poisoned(rows, in, 0, 1);
    backend_->linear_backward(put(d_y).view, put_bf16(w).view, d_x.view, Write::overwrite);
    check_product(reference::multiply(d_y, w), reference::multiply(d_y_rounded, w), d_x);
    d_x = put(d_x_before);
    backend_->linear_backward(put(d_y).view, put_bf16(w).view, d_x.view, Write::accumulate);
    check_product(add(d_x_before, reference::multiply(d_y, w)), add(d_x_before, reference::multiply(d_y_rounded, w)),
                  d_x);
  }
}

TEST_P(Products, GroupedMatmul) {
  for (const std::int64_t in : {1, 8, 16, 19, 64, 130}) {
    for (const std::int64_t out : {1, 5, 8, 24, 50, 576}) {
      const Matrix x = random(kBatch, in), before = random(kBatch, out);
      std::vector<Matrix> p;
      for (int slot = 0; slot < 4; ++slot) p.push_back(random(in, out));
      for (const Multiply how : {Multiply::by_matrix, Multiply::by_transpose}) {
        std::vector<Matrix> stored = p;
        if (how == Multiply::by_transpose) {
          for (Matrix& m : stored) m = reference::transposed(m);
        }
        const Slots parameters = slots(stored);
        for (const Write mode : {Write::overwrite, Write::accumulate}) {
          Matrix expected = before;  // rows of no member stay as they are
          for (const MemberRows& member : kMembers) {
            Matrix part = scale(0.5, reference::multiply(rows_of(x, member), p[member.slot]));
            if (mode == Write::accumulate) part = add(part, rows_of(before, member));
            set_rows(expected, member, part);
          }
          Buffer y = put(before, 1, 2);
          backend_->grouped_matmul(kMembers, how, 0.5f, put(x, 0, 3).view, parameters.matrix, y.view, mode);
          expect_close(expected, y, tolerance::kProduct);
        }
      }
    }
  }
}

TEST_P(Products, GroupedOuter) {
  for (const std::int64_t in : {1, 8, 33, 576}) {
    for (const std::int64_t out : {1, 8, 16, 50, 130}) {
      const Matrix x = random(kBatch, in), d_y = random(kBatch, out);
      std::vector<Matrix> before;
      for (int slot = 0; slot < 5; ++slot) before.push_back(random(out, in));
      for (const Write mode : {Write::overwrite, Write::accumulate}) {
        std::vector<Matrix> expected = before;  // slot 4 has no member
        for (const MemberRows& member : kMembers) {
          const Matrix d_p =
              scale(-2, reference::multiply(reference::transposed(rows_of(d_y, member)), rows_of(x, member)));
          expected[member.slot] = mode == Write::accumulate ? add(before[member.slot], d_p) : d_p;
        }
        const Slots d_p = slots(before);
        backend_->grouped_outer(kMembers, -2, put(d_y, 1, 1).view, put(x, 2, 0).view, d_p.matrix, mode);
        const std::vector<Matrix> found = from_slots(d_p);
        for (std::size_t s = 0; s < 5; ++s) expect_close(expected[s], found[s], tolerance::kProduct);
      }
    }
  }
}

TEST_P(Products, GroupedProductsAreGradients) {
  // L = <d_y, 0.5 x P^T>: d_x = 0.5 d_y P by grouped_matmul, d_P = 0.5 d_y^T x by grouped_outer.
  const std::vector<MemberRows> one = {{0, 6, 0}};
  const Matrix x = random(6, 7), p = random(4, 7), d_y = random(6, 4);
  const auto loss = [&](const Matrix& at_x, const Matrix& at_p) {
    return 0.5 * dot(reference::linear(at_x, at_p, {}), d_y);
  };
  Buffer d_x = poisoned(6, 7);
  backend_->grouped_matmul(one, Multiply::by_matrix, 0.5f, put(d_y).view, slots({p}).matrix, d_x.view,
                           Write::overwrite);
  expect_close(reference::gradient([&](const Matrix& at) { return loss(at, p); }, x), d_x, tolerance::kGradient);
  const Slots d_p = slots({Matrix(4, 7, NAN)});
  backend_->grouped_outer(one, 0.5f, put(d_y).view, put(x).view, d_p.matrix, Write::overwrite);
  expect_close(reference::gradient([&](const Matrix& at) { return loss(x, at); }, p), from_slots(d_p)[0],
               tolerance::kGradient);
}

TEST_P(Products, GroupedBias) {
  for (const std::int64_t cols : {1, 7, 16, 70, 576}) {
    const Matrix y = random(kBatch, cols);
    std::vector<Matrix> b;
    for (int slot = 0; slot < 4; ++slot) b.push_back(random(1, cols));
    Matrix expected = y;
    std::vector<Matrix> sums = b, added = b;
    for (const MemberRows& member : kMembers) {
      Matrix sum(1, cols);
      for (std::int64_t t = member.begin; t < member.end; ++t) {
        for (std::int64_t c = 0; c < cols; ++c) {
          expected(t, c) += b[member.slot](0, c);
          sum(0, c) += y(t, c);
        }
      }
      sums[member.slot] = sum;
      added[member.slot] = add(b[member.slot], sum);
    }
    Buffer out = put(y, 1, 1);
    backend_->grouped_add_bias(kMembers, slots(b).matrix, out.view);
    expect_close(expected, out, tolerance::kElementwise);
    const Slots d_b = slots(b), d_b_added = slots(b);
    backend_->grouped_column_sum(kMembers, put(y, 2, 2).view, d_b.matrix, Write::overwrite);
    backend_->grouped_column_sum(kMembers, put(y, 2, 2).view, d_b_added.matrix, Write::accumulate);
    for (std::size_t s = 0; s < 4; ++s) {
      expect_close(sums[s], from_slots(d_b)[s], tolerance::kProduct);
      expect_close(added[s], from_slots(d_b_added)[s], tolerance::kProduct);
    }
  }
}

TEST_P(Products, GroupedGate) {
  for (const std::int64_t cols : {1, 7, 16, 70}) {
    const Matrix h = random(kBatch, cols), a = random(kBatch, cols), d_z = random(kBatch, cols);
    const Matrix before = random(kBatch, cols);
    std::vector<Matrix> g, d_g_before;
    for (int slot = 0; slot < 4; ++slot) g.push_back(random(1, cols)), d_g_before.push_back(random(1, cols));
    Matrix z = before, d_h = before, d_h_added = before, d_a = before;
    std::vector<Matrix> d_g = d_g_before, d_g_added = d_g_before;
    for (const MemberRows& m : kMembers) {
      const Matrix hm = rows_of(h, m), am = rows_of(a, m), dm = rows_of(d_z, m);
      const Matrix& gm = g[m.slot];
      using reference::gate;
      using reference::gradient;
      set_rows(z, m, gate(hm, am, gm));
      const Matrix to_h = gradient([&](const Matrix& at) { return dot(gate(at, am, gm), dm); }, hm);
      set_rows(d_h, m, to_h);
      set_rows(d_h_added, m, add(rows_of(before, m), to_h));
      set_rows(d_a, m, gradient([&](const Matrix& at) { return dot(gate(hm, at, gm), dm); }, am));
      d_g[m.slot] = gradient([&](const Matrix& at) { return dot(gate(hm, am, at), dm); }, gm);
      d_g_added[m.slot] = add(d_g_before[m.slot], d_g[m.slot]);
    }
    Buffer out = put(before, 1, 1);
    backend_->grouped_gate(kMembers, put(h, 0, 1).view, put(a, 1, 0).view, slots(g).matrix, out.view);
    expect_close(z, out, tolerance::kElementwise);
    for (const Write mode : {Write::overwrite, Write::accumulate}) {
      Buffer out_h = put(before, 1, 1), out_a = put(before, 2, 0);
      const Slots out_g = slots(d_g_before);
      backend_->grouped_gate_backward(kMembers, put(h, 0, 1).view, put(a, 1, 0).view, slots(g).matrix,
                                      put(d_z, 3, 0).view, out_h.view, mode, out_a.view, out_g.matrix, mode);
      expect_close(mode == Write::overwrite ? d_h : d_h_added, out_h, tolerance::kGradient);
      expect_close(d_a, out_a, tolerance::kGradient);
      for (std::size_t s = 0; s < 4; ++s) {
        expect_close(mode == Write::overwrite ? d_g[s] : d_g_added[s], from_slots(out_g)[s], tolerance::kGradient);
      }
    }
  }
}

}  // namespace
}  // namespace fedpdpo
