// Attention of bf16 rows, where the backend takes them: against the double reference and the CPU's f32 backward of the
// same rounded inputs, and to the bit what a group's rows must not depend on.
#include "attention_plans.hpp"
#include "bf16_fixture.hpp"

namespace fedpdpo {
namespace {

class AttentionBf16 : public Bf16Test {
 protected:
  struct Result {
    Bits out, d_qkv;
    Matrix lse;
    bool operator==(const Result& other) const {
      return out == other.out && d_qkv == other.d_qkv && lse.values == other.lse.values;
    }
    Result rows(std::int64_t begin, std::int64_t end) const {
      const auto part = [&](const auto& of) {
        const auto width = static_cast<std::int64_t>(of.size()) / lse.rows;
        return std::decay_t<decltype(of)>(of.begin() + begin * width, of.begin() + end * width);
      };
      Result some{part(out), part(d_qkv), Matrix(end - begin, lse.cols)};
      some.lse.values = part(lse.values);
      return some;
    }
  };
  Result run(const TestPlan& plan, const AttentionShape& shape, const Matrix& qkv, const Matrix& d_out,
             Place place = Place::aligned) {
    const Half in = put_half(qkv, place), gradient = put_half(d_out, place);
    const Half out = poisoned_half(qkv.rows, d_out.cols, place), d_qkv = poisoned_half(qkv.rows, qkv.cols, place);
    const Buffer lse = poisoned(qkv.rows, shape.num_heads, 1, 1);
    backend_->attention(plan.view(), shape, in.view, out.view, lse.view);
    backend_->attention_backward(plan.view(), shape, in.view, out.view, lse.view, gradient.view, d_qkv.view);
    expect_guard(lse);
    return {bits(out), bits(d_qkv), get(lse)};
  }
  static Matrix matrix(const Bits& of, std::int64_t rows) {
    Matrix m(rows, static_cast<std::int64_t>(of.size()) / rows);
    for (std::size_t i = 0; i < of.size(); ++i) m.values[i] = bf16_value(of[i]);
    return m;
  }

  /// The largest error of a row of a head over that row's norm, or the usual one of the columns [begin, end) where that
  /// is larger. NaN where anything found is not finite.
  static double row_distance(const Matrix& expected, const Matrix& found, std::int64_t begin, std::int64_t end,
                             std::int64_t head_dim) {
    double total = 0;
    std::vector<std::pair<double, double>> errors_and_norms;
    for (std::int64_t i = 0; i < expected.rows; ++i) {
      for (std::int64_t head = begin; head < end; head += head_dim) {
        double error = 0, norm = 0;
        for (std::int64_t j = head; j < head + head_dim; ++j) {
          error += std::pow(found(i, j) - expected(i, j), 2);
          norm += std::pow(expected(i, j), 2);
        }
        total += norm;
        errors_and_norms.emplace_back(error, norm);
      }
    }
    const double usual = total / static_cast<double>(errors_and_norms.size());
    double largest = 0;
    for (const auto& [error, norm] : errors_and_norms) {
      if (!std::isfinite(error)) return error;
      largest = std::max(largest, std::sqrt(error / std::max(norm, usual)));
    }
    return largest;
  }
  static void expect_rows_close(const char* what, const Matrix& expected, const Matrix& found, std::int64_t begin,
                                std::int64_t end, std::int64_t head_dim, double tolerance) {
    EXPECT_LE(row_distance(expected, found, begin, end, head_dim), tolerance)
        << what << " " << where_it_differs(expected, found, tolerance, begin, end);
  }
  static void expect_gradient(const Matrix& expected, const Matrix& found, const AttentionShape& shape,
                              double tolerance) {
    const std::int64_t hd = shape.head_dim, keys = shape.num_heads * hd, values = keys + shape.num_kv_heads * hd;
    expect_rows_close("d_q", expected, found, 0, keys, hd, tolerance);
    expect_rows_close("d_k", expected, found, keys, values, hd, tolerance);
    expect_rows_close("d_v", expected, found, values, expected.cols, hd, tolerance);
  }
  /// From the forward's own results: they are rounded, which changes D = rowsum(dO * O).
  Matrix cpu_gradient(const TestPlan& plan, const AttentionShape& shape, const Matrix& qkv, const Matrix& d_out,
                      const Result& forward) {
    const auto cpu = make_cpu_backend({});
    const auto put = [&](const Matrix& m) {
      Tensor tensor(*cpu, m.rows, m.cols);
      std::copy(m.values.begin(), m.values.end(), tensor.view().f32());
      return tensor;
    };
    const Tensor in = put(qkv), gradient = put(d_out), d_qkv(*cpu, qkv.rows, qkv.cols);
    const Tensor out = put(matrix(forward.out, qkv.rows)), lse = put(forward.lse);
    cpu->attention_backward(plan.view(), shape, in.view(), out.view(), lse.view(), gradient.view(), d_qkv.view());
    Matrix m(qkv.rows, qkv.cols);
    std::copy_n(d_qkv.view().f32(), m.values.size(), m.values.begin());
    return m;
  }

  Matrix random_half(std::int64_t rows, std::int64_t cols) { return rounded_to_bf16(random(rows, cols)); }
  static std::int64_t width(const AttentionShape& shape) {
    return std::int64_t{shape.num_heads + 2 * shape.num_kv_heads} * shape.head_dim;
  }
  void expect_attention(const TestPlan& plan, const AttentionShape& shape, Place place = Place::aligned) {
    SCOPED_TRACE(testing::Message() << plan.rows() << " rows, heads " << shape.num_heads << "/" << shape.num_kv_heads
                                    << " of " << shape.head_dim << (place == Place::odd ? ", odd places" : ""));
    const Matrix qkv = random_half(plan.rows(), width(shape));
    const Matrix d_out = random_half(plan.rows(), std::int64_t{shape.num_heads} * shape.head_dim);
    const Result found = run(plan, shape, qkv, d_out, place);
    Matrix lse;
    const Matrix expected = reference::attention(plan.view(), shape, qkv, &lse);
    expect_rows_close("out", expected, matrix(found.out, qkv.rows), 0, expected.cols, shape.head_dim,
                      tolerance::kAttentionBf16);
    expect_rows_close("lse", lse, found.lse, 0, lse.cols, 1, tolerance::kAttention);
    expect_gradient(cpu_gradient(plan, shape, qkv, d_out, found), matrix(found.d_qkv, qkv.rows), shape,
                    tolerance::kAttentionGradientBf16);
  }
};
FEDPDPO_ON_EVERY_BACKEND(AttentionBf16);

/// Segments that end just before, at and just after a tile, with and without a context.
const std::vector<std::array<std::int32_t, 3>> kLengths = {
    {63, 64, 65}, {1, 5, 130}, {130, 1, 5}, {0, 64, 63}, {64, 0, 1}};

TEST_P(AttentionBf16, HeadDims) {
  for (const int head_dim : {16, 32, 64, 80, 96, 128}) {
    expect_attention(TestPlan::pairs({{70, 65, 3}, {5, 1, 20}}), test_heads(2, 1, head_dim));
  }
}
TEST_P(AttentionBf16, GroupedHeads) {
  expect_attention(TestPlan::pairs(kLengths), test_heads(9, 3, 64));
  expect_attention(TestPlan::pairs(kLengths), test_heads(4, 1, 16));
  expect_attention(TestPlan::pairs(kLengths), test_heads(4, 1, 128));
}
TEST_P(AttentionBf16, OddHeadDimsAndPlaces) {
  const TestPlan plan = TestPlan::pairs({{20, 70, 3}, {2, 0, 9}});
  for (const int head_dim : {3, 5, 8, 12, 24, 40, 66, 100, 127}) {
    expect_attention(plan, test_heads(2, 1, head_dim));
    expect_attention(plan, test_heads(2, 2, head_dim), Place::odd);
  }
}
TEST_P(AttentionBf16, ShapesWithoutTensorKernels) {
  const TestPlan plan = TestPlan::pairs({{20, 7, 3}, {2, 0, 9}});
  expect_attention(plan, test_heads(2, 1, 129));
  expect_attention(plan, test_heads(2, 1, 256), Place::odd);
  for (const int head_dim : {5, 40, 100}) expect_attention(plan, {2, 1, head_dim, -0.2f});
  expect_attention(plan, {2, 1, 16, 0});
}
TEST_P(AttentionBf16, GradientsAreRotatedBack) {
  // Whole heads as wide as a tile, in the kernels that compute them, and others, after these.
  const TestPlan plan = TestPlan::pairs({{70, 65, 3}, {5, 1, 20}});
  for (const auto& [head_dim, rotary] : {std::pair{32, 32}, {64, 64}, {80, 80}, {128, 128}, {64, 16}, {48, 48}}) {
    SCOPED_TRACE(testing::Message() << rotary << " of " << head_dim);
    const AttentionShape shape = test_heads(4, 2, head_dim);
    const std::int64_t rows = plan.rows(), half = rotary / 2, heads = std::int64_t{4} * head_dim;
    Matrix cos(9, half), sin(9, half), opposite(9, half);
    for (std::size_t i = 0; i < cos.values.size(); ++i) {
      cos.values[i] = static_cast<float>(std::cos(static_cast<double>(i)));
      sin.values[i] = static_cast<float>(std::sin(static_cast<double>(i)));
      opposite.values[i] = -sin.values[i];
    }
    const Indices positions = random_indices(rows, 9);
    const Matrix qkv = random_half(rows, width(shape)), d_out = random_half(rows, heads);
    const Result plain = run(plan, shape, qkv, d_out);
    const Half in = put_half(qkv, Place::aligned), gradient = put_half(d_out, Place::aligned);
    const Half out = poisoned_half(rows, heads, Place::aligned), d_qkv = poisoned_half(rows, qkv.cols, Place::aligned);
    const Buffer lse = poisoned(rows, 4), at = put(positions), c = put(cos, 1, 2), s = put(sin, 2, 1);
    backend_->attention(plan.view(), shape, in.view, out.view, lse.view);
    backend_->attention_backward(plan.view(), shape, in.view, out.view, lse.view, gradient.view, d_qkv.view,
                                 {at.view, c.view, s.view});
    const std::int64_t keys = query_key_width(shape);
    const auto columns = [](const Matrix& m, std::int64_t begin, std::int64_t end) {
      Matrix part(m.rows, end - begin);
      for (std::int64_t t = 0; t < m.rows; ++t)
        for (std::int64_t i = begin; i < end; ++i) part(t, i - begin) = m(t, i);
      return part;
    };
    const Matrix found = matrix(bits(d_qkv), rows), before = matrix(plain.d_qkv, rows);
    // Once rounded before the rotation, or not, and once after it.
    expect_close(reference::rotate(positions, cos, opposite, head_dim, columns(before, 0, keys)),
                 columns(found, 0, keys), 2 * tolerance::kBf16Output);
    EXPECT_EQ(columns(found, keys, qkv.cols).values, columns(before, keys, qkv.cols).values);
  }
}

TEST_P(AttentionBf16, ContextIsAPartOfTheRowsBefore) {
  TestPlan plan;
  plan.segments = {{0, 100, 0, 0}, {100, 130, 7, 93}, {130, 260, 30, 110}, {260, 260, 0, 260}, {260, 262, 65, 66}};
  plan.offsets = {0, 5};
  expect_attention(plan, test_heads(2, 1, 32));
}
TEST_P(AttentionBf16, ContextsThatEndAroundABlockOfSixteenRows) {
  std::vector<std::array<std::int32_t, 3>> lengths;
  for (const std::int32_t block : {16, 32, 48, 64})
    for (const std::int32_t by : {-3, -2, -1, 0, 1}) lengths.push_back({block + by, 66, 1});
  expect_attention(TestPlan::pairs(lengths), test_heads(1, 1, 16));
}
TEST_P(AttentionBf16, ManyShortGroups) {
  std::vector<std::array<std::int32_t, 3>> lengths(40);
  for (auto& [prefix, first, second] : lengths) {
    prefix = random_indices(1, 11)[0];
    first = 1 + random_indices(1, 12)[0];
    second = 1 + random_indices(1, 12)[0];
  }
  expect_attention(TestPlan::pairs(lengths), test_heads(3, 1, 64));
  TestPlan whole;  // sequences of their own, and a group without segments
  whole.segments = {{0, 5, 0, 0}, {5, 14, 5, 5}};
  whole.offsets = {0, 1, 1, 2};
  expect_attention(whole, test_heads(4, 1, 16));
}

TEST_P(AttentionBf16, GradientIsThatOfTheForward) {
  const TestPlan plan = TestPlan::pairs({{4, 2, 3}, {1, 1, 0}, {3, 4, 1}});
  const AttentionShape shape = test_heads(4, 2, 8);
  const Matrix qkv = random_half(plan.rows(), width(shape)), d_out = random_half(plan.rows(), 32);
  const auto loss = [&](const Matrix& at) { return dot(reference::attention(plan.view(), shape, at), d_out); };
  expect_gradient(reference::gradient(loss, qkv), matrix(run(plan, shape, qkv, d_out).d_qkv, qkv.rows), shape,
                  tolerance::kAttentionGradientBf16Unrounded);
}

TEST_P(AttentionBf16, AGroupsBitsAreTheSameInAnyBatch) {
  const std::vector<std::array<std::int32_t, 3>> before = {{3, 70, 0}, {9, 8, 7}}, own = {{75, 66, 30}},
                                                 after = {{1, 129, 2}};
  std::vector<std::array<std::int32_t, 3>> all = before;
  all.insert(all.end(), own.begin(), own.end());
  all.insert(all.end(), after.begin(), after.end());
  const TestPlan alone = TestPlan::pairs(own), batch = TestPlan::pairs(all);
  for (const int head_dim : {64, 128}) {
    const AttentionShape shape = test_heads(3, 1, head_dim);
    const Matrix qkv = random_half(batch.rows(), width(shape)), d_out = random_half(batch.rows(), 3 * head_dim);
    const std::int64_t begin = TestPlan::pairs(before).rows(), end = begin + alone.rows();
    const auto part = [&](const Matrix& of) {
      Matrix rows(alone.rows(), of.cols);
      std::copy(of.values.begin() + begin * of.cols, of.values.begin() + end * of.cols, rows.values.begin());
      return rows;
    };
    const Result in_batch = run(batch, shape, qkv, d_out), by_itself = run(alone, shape, part(qkv), part(d_out));
    EXPECT_TRUE(by_itself == in_batch.rows(begin, end)) << head_dim;
    EXPECT_TRUE(run(batch, shape, qkv, d_out) == in_batch) << "again, " << head_dim;
    EXPECT_FALSE(by_itself == in_batch.rows(begin - 1, end - 1));
  }
}

TEST_P(AttentionBf16, PlacesChangeNoBits) {
  const TestPlan plan = TestPlan::pairs({{20, 70, 3}});
  const AttentionShape shape = test_heads(2, 1, 40);
  const Matrix qkv = random_half(plan.rows(), width(shape)), d_out = random_half(plan.rows(), 80);
  EXPECT_TRUE(run(plan, shape, qkv, d_out, Place::aligned) == run(plan, shape, qkv, d_out, Place::odd));
}

TEST_P(AttentionBf16, LargeScoresDoNotOverflow) {
  const TestPlan plan = TestPlan::pairs({{70, 5, 66}});
  const AttentionShape shape = test_heads(2, 1, 64);
  Matrix qkv = random_half(plan.rows(), width(shape));
  for (double& v : qkv.values) v *= 32;
  const Result found = run(plan, shape, qkv, random_half(plan.rows(), 128));
  for (const Bits& all : {found.out, found.d_qkv})
    for (const std::uint16_t v : all) ASSERT_TRUE(std::isfinite(bf16_value(v)));
  for (const double v : found.lse.values) ASSERT_TRUE(std::isfinite(v));
}

TEST_P(AttentionBf16, ANumberThatIsNotFiniteIsSeen) {
  const TestPlan plan = TestPlan::pairs({{70, 5, 66}, {3, 2, 2}});
  const AttentionShape shape = test_heads(2, 1, 64);
  Matrix qkv = random_half(plan.rows(), width(shape));
  qkv(80, 3) = NAN;  // a query's
  const Matrix out = matrix(run(plan, shape, qkv, random_half(plan.rows(), 128)).out, plan.rows());
  for (std::int64_t i = 0; i < out.rows; ++i)
    for (std::int64_t j = 0; j < out.cols; ++j) ASSERT_EQ(std::isnan(out(i, j)), i == 80 && j < 64) << i << " " << j;
}

}  // namespace
}  // namespace fedpdpo
