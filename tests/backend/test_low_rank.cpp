// Per-client low-rank maps: all sites of a block at once, and products of bf16 rows with f32 ones.
#include "bf16_fixture.hpp"

namespace fedpdpo {
namespace {

// Members whose numbers of rows lie around those of a tile, and rows that belong to nobody.
const std::vector<MemberRows> kMembers = {{2, 2, 3},   {2, 3, 0},    {3, 18, 6},   {20, 36, 1},
                                          {36, 53, 2}, {53, 117, 5}, {120, 260, 4}};
constexpr std::int64_t kBatch = 263, kSlots = 8;  // slot 7 has no member

/// Rows of nobody become NaN.
Matrix poison_others(Matrix m) {
  std::vector<bool> owned(static_cast<std::size_t>(m.rows));
  for (const MemberRows& member : kMembers)
    for (std::int64_t t = member.begin; t < member.end; ++t) owned[static_cast<std::size_t>(t)] = true;
  for (std::int64_t t = 0; t < m.rows; ++t)
    for (std::int64_t c = 0; c < m.cols && !owned[static_cast<std::size_t>(t)]; ++c) m(t, c) = NAN;
  return m;
}

struct Shape {
  std::int64_t width, rank;
};
constexpr Shape kShapes[] = {{8, 3}, {40, 8}, {136, 12}, {576, 24}, {320, 64}, {72, 100}, {200, 130}, {40, 40}};
constexpr Shape kOddShapes[] = {{37, 8}, {20, 3}, {1, 1}};

class LowRank : public OperationTest {};
FEDPDPO_ON_EVERY_BACKEND(LowRank);

TEST_P(LowRank, SitesAreProductsOneByOne) {
  // Columns 4 to 30 of y and the last of u belong to no site.
  const std::int64_t widths[] = {4, 21, 9}, rank = 3;
  const Matrix u = random(kBatch, 10), before = random(kBatch, 64), d_y = random(kBatch, 64);
  std::vector<Slots> b, d_b;
  std::vector<LowRankSite> sites;
  std::vector<std::vector<Matrix>> factors;
  std::int32_t column = 0;
  for (std::int32_t i = 0; i < 3; ++i) {
    factors.emplace_back();
    for (int slot = 0; slot < kSlots; ++slot) factors.back().push_back(random(widths[i], rank));
    b.push_back(slots(factors.back()));
    d_b.push_back(slots(factors.back()));
    const auto end = static_cast<std::int32_t>(column + widths[i]);
    sites.push_back({column, end, i * 3, b.back().matrix, i == 1 ? ClientMatrix{} : d_b.back().matrix});
    column = end + 26;
    if (i == 1) column = end;
  }
  const Buffer y = put(before, 1, 2), d_u = put(u, 0, 1);
  backend_->low_rank_up(kMembers, 0.5f, put(u, 2, 0).view, sites, y.view, Write::accumulate);
  backend_->low_rank_up_backward(kMembers, 0.5f, put(u).view, sites, put(d_y, 3, 0).view, d_u.view, Write::accumulate);

  Matrix expected = before, expected_d_u = u;
  const auto columns = [](const Matrix& m, std::int64_t begin, std::int64_t end) {
    Matrix part(m.rows, end - begin);
    for (std::int64_t i = 0; i < m.rows; ++i)
      for (std::int64_t j = begin; j < end; ++j) part(i, j - begin) = m(i, j);
    return part;
  };
  const Buffer y_again = put(before, 1, 2), d_u_again = put(u, 0, 1);
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const LowRankSite& site = sites[i];
    const std::int64_t u_end = site.u_begin + rank;
    std::vector<Matrix> gradient = factors[i];
    for (const MemberRows& member : kMembers) {
      const Matrix& factor = factors[i][static_cast<std::size_t>(member.slot)];
      const Matrix u_part = columns(rows_of(u, member), site.u_begin, u_end);
      const Matrix d_part = columns(rows_of(d_y, member), site.begin, site.end);
      const Matrix up = reference::linear(u_part, factor, {}), down = reference::multiply(d_part, factor);
      for (std::int64_t t = member.begin; t < member.end; ++t) {
        for (std::int64_t c = site.begin; c < site.end; ++c)
          expected(t, c) += 0.5 * up(t - member.begin, c - site.begin);
        for (std::int64_t c = 0; c < rank; ++c) expected_d_u(t, site.u_begin + c) = 0.5 * down(t - member.begin, c);
      }
      Matrix& sum = gradient[static_cast<std::size_t>(member.slot)];
      if (site.d_b.data != nullptr)
        sum = add(sum, reference::scale(0.5, reference::multiply(reference::transposed(d_part), u_part)));
    }
    const std::vector<Matrix> found = from_slots(d_b[i]);
    for (std::size_t s = 0; s < kSlots; ++s) expect_close(gradient[s], found[s], tolerance::kProduct);
    backend_->grouped_matmul(kMembers, Multiply::by_transpose, 0.5f, put(u, 2, 0).view.columns(site.u_begin, u_end),
                             site.b, y_again.view.columns(site.begin, site.end), Write::accumulate);
    backend_->grouped_matmul(kMembers, Multiply::by_matrix, 0.5f, put(d_y, 3, 0).view.columns(site.begin, site.end),
                             site.b, d_u_again.view.columns(site.u_begin, u_end), Write::overwrite);
  }
  expect_close(expected, y, tolerance::kProduct);
  expect_close(expected_d_u, d_u, tolerance::kProduct);
  const Buffer alone = put(before, 1, 2), to_zeros = put(Matrix(kBatch, before.cols), 1, 2);
  backend_->low_rank_up(kMembers, 0.5f, put(u).view, sites, alone.view, Write::overwrite);
  backend_->low_rank_up(kMembers, 0.5f, put(u).view, sites, to_zeros.view, Write::accumulate);
  Matrix overwritten = before;
  const Matrix terms = get(to_zeros);
  for (const LowRankSite& site : sites)
    for (const MemberRows& member : kMembers)
      for (std::int64_t t = member.begin; t < member.end; ++t)
        for (std::int64_t c = site.begin; c < site.end; ++c) overwritten(t, c) = terms(t, c);
  expect_close(overwritten, alone, tolerance::kProduct);
  EXPECT_EQ(get(y).values, get(y_again).values);
  EXPECT_EQ(get(d_u).values, get(d_u_again).values);
}

class LowRankBf16 : public Bf16Test {
 protected:
  Matrix random_half(std::int64_t rows, std::int64_t cols) { return rounded_to_bf16(random(rows, cols)); }
  std::vector<Matrix> random_factors(std::int64_t rows, std::int64_t cols) {
    std::vector<Matrix> factors;
    for (int slot = 0; slot < kSlots; ++slot) factors.push_back(random(rows, cols));
    return factors;
  }
  /// Factors that begin at whole 16 bytes, or do not.
  Slots place_factors(const std::vector<Matrix>& factors, Place place) {
    const std::int64_t size = factors[0].rows * factors[0].cols;
    return place == Place::odd ? slots(factors, 2, 3) : slots(factors, 4, 8 - size % 4);
  }
  Buffer place_thin(const Matrix& m, Place place) {
    return place == Place::odd ? put(m, 1, 2) : put(m, 4, 8 - m.cols % 4);
  }
  /// x P^T or x P of the member's rows, in the layout of P.
  static Matrix product(const Matrix& x, const Matrix& p, Multiply how) {
    return how == Multiply::by_transpose ? reference::linear(x, p, {}) : reference::multiply(x, p);
  }
  void expect_down(const Shape& shape, Place place) {
    SCOPED_TRACE(testing::Message() << shape.width << " to " << shape.rank << (place == Place::odd ? ", odd" : ""));
    const Matrix x = poison_others(random_half(kBatch, shape.width)), before = random(kBatch, shape.rank);
    for (const Multiply how : {Multiply::by_transpose, Multiply::by_matrix}) {
      const bool transposed = how == Multiply::by_transpose;
      const std::vector<Matrix> p =
          transposed ? random_factors(shape.rank, shape.width) : random_factors(shape.width, shape.rank);
      for (const Write mode : {Write::overwrite, Write::accumulate}) {
        Matrix expected = before;
        for (const MemberRows& m : kMembers) {
          Matrix part = reference::scale(0.5, product(rows_of(x, m), p[static_cast<std::size_t>(m.slot)], how));
          if (mode == Write::accumulate) part = add(part, rows_of(before, m));
          set_rows(expected, m, part);
        }
        const Buffer y = place_thin(before, place);
        backend_->grouped_matmul(kMembers, how, 0.5f, put_half(x, place).view, place_factors(p, place).matrix, y.view,
                                 mode);
        expect_close(expected, y, tolerance::kLowRank);
      }
    }
  }
  /// Nearly all are the nearest numbers of bf16, none is further than the next.
  static void expect_rounded(const Matrix& expected, const Matrix& found) {
    ASSERT_EQ(expected.values.size(), found.values.size());
    double square = 0;
    for (const double v : expected.values) square += v * v;
    const double usual = std::sqrt(square / static_cast<double>(expected.values.size()));
    std::size_t others = 0;
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
      const double exact = expected.values[i], error = std::abs(found.values[i] - exact);
      others += found.values[i] != bf16_value(bf16_bits(static_cast<float>(exact)));
      ASSERT_LE(error, std::abs(exact) / 256 + tolerance::kLowRank * 10 * usual) << i;
    }
    EXPECT_LE(static_cast<double>(others),
              std::max(2.0, tolerance::kNotNearestBf16 * static_cast<double>(expected.values.size())));
  }
  void expect_up(const Shape& shape, Place place) {
    SCOPED_TRACE(testing::Message() << shape.rank << " to " << shape.width << (place == Place::odd ? ", odd" : ""));
    const Matrix u = poison_others(random(kBatch, shape.rank)), before = random_half(kBatch, shape.width);
    for (const Multiply how : {Multiply::by_transpose, Multiply::by_matrix}) {
      const bool transposed = how == Multiply::by_transpose;
      const std::vector<Matrix> p =
          transposed ? random_factors(shape.width, shape.rank) : random_factors(shape.rank, shape.width);
      for (const Write mode : {Write::overwrite, Write::accumulate}) {
        Matrix expected = before;
        for (const MemberRows& m : kMembers) {
          Matrix part = reference::scale(0.3f, product(rows_of(u, m), p[static_cast<std::size_t>(m.slot)], how));
          if (mode == Write::accumulate) part = add(part, rows_of(before, m));
          set_rows(expected, m, part);
        }
        const Half y = put_half(before, place);
        backend_->grouped_matmul(kMembers, how, 0.3f, place_thin(u, place).view, place_factors(p, place).matrix, y.view,
                                 mode);
        expect_rounded(expected, values(y));
      }
    }
  }
  void expect_outer(const Shape& shape, Place place) {
    SCOPED_TRACE(testing::Message() << shape.width << " by " << shape.rank << (place == Place::odd ? ", odd" : ""));
    const Matrix wide = poison_others(random_half(kBatch, shape.width)),
                 thin = poison_others(random(kBatch, shape.rank));
    for (const bool wide_first : {true, false}) {
      const std::vector<Matrix> before =
          wide_first ? random_factors(shape.width, shape.rank) : random_factors(shape.rank, shape.width);
      for (const Write mode : {Write::overwrite, Write::accumulate}) {
        std::vector<Matrix> expected = before;
        for (const MemberRows& m : kMembers) {
          const Matrix a = rows_of(wide_first ? wide : thin, m), b = rows_of(wide_first ? thin : wide, m);
          const Matrix sum = reference::scale(-2, reference::multiply(reference::transposed(a), b));
          Matrix& slot = expected[static_cast<std::size_t>(m.slot)];
          slot = mode == Write::accumulate ? add(slot, sum) : sum;
        }
        const Slots d_p = place_factors(before, place);
        const Half rows = put_half(wide, place);
        const Buffer numbers = place_thin(thin, place);
        backend_->grouped_outer(kMembers, -2, wide_first ? rows.view : numbers.view,
                                wide_first ? numbers.view : rows.view, d_p.matrix, mode);
        const std::vector<Matrix> found = from_slots(d_p);
        for (std::size_t s = 0; s < kSlots; ++s) expect_close(expected[s], found[s], tolerance::kLowRank);
      }
    }
  }
  /// All sites of a block at once against products of each.
  void expect_sites_one_by_one(Write mode) {
    // More sites than a launch takes, of several widths, one without a gradient; gaps between their columns.
    const std::int64_t widths[] = {64, 24, 24, 8, 136, 16};
    const Matrix u = random(kBatch, 6 * 12 + 4), d_y = random_half(kBatch, 320);
    std::vector<Slots> b, d_b, d_b_again;
    std::vector<LowRankSite> sites;
    std::int32_t column = 8;
    for (std::int32_t i = 0; i < 6; ++i) {
      b.push_back(slots(random_factors(widths[i], 12)));
      d_b.push_back(slots(random_factors(widths[i], 12)));
      d_b_again.push_back(slots(from_slots(d_b.back())));
      const auto end = static_cast<std::int32_t>(column + widths[i]);
      sites.push_back({column, end, i * 12 + 4, b.back().matrix, i == 2 ? ClientMatrix{} : d_b.back().matrix});
      column = end + (i == 3 ? 8 : 0);
    }
    const Half y = put_half(d_y, Place::aligned), y_again = put_half(d_y, Place::aligned);
    const Half gradient = put_half(d_y, Place::aligned);
    const Buffer in = put(u, 4, 4), d_u = poisoned(kBatch, u.cols), d_u_again = poisoned(kBatch, u.cols);
    backend_->low_rank_up(kMembers, 0.5f, in.view, sites, y.view, mode);
    backend_->low_rank_up_backward(kMembers, 0.5f, in.view, sites, gradient.view, d_u.view, Write::accumulate);
    for (std::size_t i = 0; i < sites.size(); ++i) {
      const auto& [begin, end, u_begin, factor, unused] = sites[i];
      const View columns = gradient.view.columns(begin, end), u_columns = in.view.columns(u_begin, u_begin + 12);
      backend_->grouped_matmul(kMembers, Multiply::by_transpose, 0.5f, u_columns, factor,
                               y_again.view.columns(begin, end), mode);
      backend_->grouped_matmul(kMembers, Multiply::by_matrix, 0.5f, columns, factor,
                               d_u_again.view.columns(u_begin, u_begin + 12), Write::overwrite);
      if (i != 2) backend_->grouped_outer(kMembers, 0.5f, columns, u_columns, d_b_again[i].matrix, Write::accumulate);
      const std::vector<Matrix> found = from_slots(d_b[i]), expected = from_slots(d_b_again[i]);
      for (std::size_t s = 0; s < kSlots; ++s) EXPECT_EQ(found[s].values, expected[s].values) << i << " " << s;
    }
    EXPECT_EQ(bits(y), bits(y_again));
    EXPECT_NE(bits(y), bits(gradient));
    const std::vector<float> found = host_of(d_u.tensor), expected = host_of(d_u_again.tensor);
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);
  }
};
FEDPDPO_ON_EVERY_BACKEND(LowRankBf16);

TEST_P(LowRankBf16, Down) {
  for (const Shape& shape : kShapes) expect_down(shape, Place::aligned);
  for (const Shape& shape : kOddShapes) expect_down(shape, Place::aligned);
  expect_down(kShapes[2], Place::odd);
}
TEST_P(LowRankBf16, Up) {
  for (const Shape& shape : kShapes) expect_up(shape, Place::aligned);
  for (const Shape& shape : kOddShapes) expect_up(shape, Place::aligned);
  expect_up(kShapes[2], Place::odd);
}
TEST_P(LowRankBf16, Outer) {
  for (const Shape& shape : kShapes) expect_outer(shape, Place::aligned);
  for (const Shape& shape : kOddShapes) expect_outer(shape, Place::aligned);
  expect_outer(kShapes[2], Place::odd);
}

TEST_P(LowRankBf16, BothSidesInBf16) {
  const Matrix x = random_half(kBatch, 40), before = random_half(kBatch, 16);
  const std::vector<Matrix> p = random_factors(16, 40);
  Matrix expected = before;
  std::vector<Matrix> sums = p;
  for (const MemberRows& m : kMembers) {
    set_rows(expected, m, reference::linear(rows_of(x, m), p[static_cast<std::size_t>(m.slot)], {}));
    sums[static_cast<std::size_t>(m.slot)] =
        reference::multiply(reference::transposed(rows_of(before, m)), rows_of(x, m));
  }
  const Half y = put_half(before, Place::aligned), in = put_half(x, Place::aligned);
  const Slots d_p = slots(p);
  backend_->grouped_outer(kMembers, 1, y.view, in.view, d_p.matrix, Write::overwrite);
  backend_->grouped_matmul(kMembers, Multiply::by_transpose, 1, in.view, slots(p).matrix, y.view, Write::overwrite);
  expect_rounded(expected, values(y));
  const std::vector<Matrix> found = from_slots(d_p);
  for (std::size_t s = 0; s < kSlots; ++s) expect_close(sums[s], found[s], tolerance::kProduct);
}

TEST_P(LowRankBf16, AMembersBitsAreTheSameInAnyBatch) {
  // 128 members, which take other tiles than one; among them one of 75 rows.
  std::vector<MemberRows> members;
  for (std::int32_t i = 0, row = 0; i < 128; ++i) {
    const std::int32_t rows = i == 77 ? 75 : 2;
    members.push_back({row, row + rows, i});
    row += rows;
  }
  const MemberRows own = members[77];
  const std::vector<MemberRows> alone = {{0, own.end - own.begin, 0}};
  for (const auto [width, rank] : {Shape{264, 12}, Shape{72, 64}, Shape{40, 130}, Shape{40, 100}}) {
    const Matrix wide = random_half(members.back().end, width), thin = random(members.back().end, rank);
    const Slots p = slots({random(rank, width)}), d_p = slots(std::vector<Matrix>(128, Matrix(rank, width)));
    const Slots d_alone = slots({Matrix(rank, width)});
    ClientMatrix one = p.matrix;
    one.slot_stride = 0;  // all have the same
    const auto down = [&](const std::vector<MemberRows>& of, const Matrix& x) {
      const Buffer y = poisoned(x.rows, rank, 1, 1);
      backend_->grouped_matmul(of, Multiply::by_transpose, 1, put_half(x, Place::aligned).view, one, y.view,
                               Write::overwrite);
      return get(y);
    };
    const auto up = [&](const std::vector<MemberRows>& of, const Matrix& u) {
      const Half y = poisoned_half(u.rows, width, Place::aligned);
      backend_->grouped_matmul(of, Multiply::by_matrix, 1, put(u).view, one, y.view, Write::overwrite);
      return values(y);
    };
    const auto outer = [&](const std::vector<MemberRows>& of, const Matrix& u, const Matrix& x, const Slots& out) {
      backend_->grouped_outer(of, 1, put(u).view, put_half(x, Place::aligned).view, out.matrix, Write::overwrite);
      return from_slots(out);
    };
    const Matrix all_down = down(members, wide), all_up = up(members, thin);
    EXPECT_EQ(rows_of(all_down, own).values, down(alone, rows_of(wide, own)).values);
    EXPECT_EQ(rows_of(all_up, own).values, up(alone, rows_of(thin, own)).values);
    const std::vector<Matrix> sums = outer(members, thin, wide, d_p);
    EXPECT_EQ(sums[77].values, outer(alone, rows_of(thin, own), rows_of(wide, own), d_alone)[0].values);
    EXPECT_EQ(down(members, wide).values, all_down.values);
    EXPECT_EQ(up(members, thin).values, all_up.values);
    const std::vector<Matrix> again = outer(members, thin, wide, d_p);
    for (std::size_t s = 0; s < sums.size(); ++s) ASSERT_EQ(again[s].values, sums[s].values);
  }
}

TEST_P(LowRankBf16, PlacesOfFactorsChangeNoBits) {
  const Matrix wide = random_half(kBatch, 136), thin = random(kBatch, 12);
  const std::vector<Matrix> p = random_factors(12, 136), q = random_factors(136, 12);
  const auto run = [&](Place place) {
    const Buffer down = place_thin(Matrix(kBatch, 12), place);
    const Half rows = put_half(wide, Place::aligned), up = put_half(wide, Place::aligned);
    const Slots first = place_factors(p, place), second = place_factors(q, place);
    backend_->grouped_matmul(kMembers, Multiply::by_transpose, 1, rows.view, first.matrix, down.view, Write::overwrite);
    backend_->grouped_matmul(kMembers, Multiply::by_matrix, 1, rows.view, second.matrix, down.view, Write::accumulate);
    backend_->grouped_matmul(kMembers, Multiply::by_matrix, 1, place_thin(thin, place).view, first.matrix, up.view,
                             Write::accumulate);
    backend_->grouped_matmul(kMembers, Multiply::by_transpose, 1, place_thin(thin, place).view, second.matrix, up.view,
                             Write::accumulate);
    return std::pair(get(down).values, bits(up));
  };
  EXPECT_EQ(run(Place::aligned), run(Place::odd));
}

TEST_P(LowRankBf16, SitesAreProductsOneByOne) {
  expect_sites_one_by_one(Write::accumulate);
  expect_sites_one_by_one(Write::overwrite);
}

TEST_P(LowRankBf16, ANumberThatIsNotFiniteIsSeen) {
  Matrix x = random_half(20, 40);
  x(7, 33) = NAN;
  const std::vector<MemberRows> members = {{0, 20, 0}};
  const Buffer u = poisoned(20, 8);
  backend_->grouped_matmul(members, Multiply::by_transpose, 1, put_half(x, Place::aligned).view,
                           slots({random(8, 40)}).matrix, u.view, Write::overwrite);
  const Matrix found = get(u);
  for (std::int64_t i = 0; i < 20; ++i)
    for (std::int64_t j = 0; j < 8; ++j) ASSERT_EQ(std::isnan(found(i, j)), i == 7) << i << " " << j;
}

}  // namespace
}  // namespace fedpdpo
