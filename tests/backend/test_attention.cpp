// Rotary embedding and prefix-shared attention against the reference.
#include "attention_plans.hpp"
#include "fixture.hpp"

namespace fedpdpo {
namespace {

class Attention : public OperationTest {
 protected:
  using Plan = TestPlan;
  static constexpr auto pairs = TestPlan::pairs;
  static constexpr auto heads = test_heads;
  void expect_attention(const Plan& plan, const AttentionShape& shape, bool backward) {
    const std::int64_t rows = plan.rows(), width = std::int64_t{shape.num_heads} * shape.head_dim;
    const Matrix qkv = random(rows, width + 2 * shape.num_kv_heads * shape.head_dim);
    Matrix lse;
    const Matrix expected = reference::attention(plan.view(), shape, qkv, &lse);
    const Buffer in = put(qkv, 1, 2);
    Buffer out = poisoned(rows, width, 3, 1), out_lse = poisoned(rows, shape.num_heads, 1, 1);
    backend_->attention(plan.view(), shape, in.view, out.view, out_lse.view);
    expect_close(expected, out, tolerance::kAttention);
    expect_close(lse, out_lse, tolerance::kAttention);
    if (!backward) return;
    const Matrix d_out = random(rows, width);
    const auto loss = [&](const Matrix& at) { return dot(reference::attention(plan.view(), shape, at), d_out); };
    Buffer d_qkv = poisoned(rows, qkv.cols, 2, 2);
    backend_->attention_backward(plan.view(), shape, in.view, out.view, out_lse.view, put(d_out, 1, 0).view,
                                 d_qkv.view);
    expect_close(reference::gradient(loss, qkv), d_qkv, tolerance::kGradient);
  }
};
FEDPDPO_ON_EVERY_BACKEND(Attention);

TEST_P(Attention, Rotate) {
  for (const auto& [head_dim, rotary] : {std::pair{8, 8}, {16, 4}, {64, 64}, {20, 10}, {80, 32}, {6, 2}}) {
    const std::int64_t rows = 9, half = rotary / 2;
    const Matrix x = random(rows, 3 * head_dim);
    Matrix cos(12, half), sin(12, half);
    for (std::int64_t p = 0; p < 12; ++p) {
      for (std::int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(j) / half);
        cos(p, j) = static_cast<float>(std::cos(angle));
        sin(p, j) = static_cast<float>(std::sin(angle));
      }
    }
    const Indices positions = random_indices(rows, 12);
    Buffer y = put(x, 2, 5);
    const Buffer at = put(positions), c = put(cos, 0, 1), s = put(sin, 1, 1);
    backend_->rotate(at.view, c.view, s.view, head_dim, Rotation::forward, y.view);
    const Matrix rotated = reference::rotate(positions, cos, sin, head_dim, x);
    expect_close(rotated, y, tolerance::kElementwise);
    // The inverse is the backward: the transpose of a rotation.
    const Matrix d_y = random(rows, 3 * head_dim);
    const Matrix expected = reference::gradient(
        [&](const Matrix& x_at) { return dot(reference::rotate(positions, cos, sin, head_dim, x_at), d_y); }, x);
    y = put(d_y, 2, 5);
    backend_->rotate(at.view, c.view, s.view, head_dim, Rotation::inverse, y.view);
    expect_close(expected, y, tolerance::kGradient);
  }
}

TEST_P(Attention, GradientsAreRotatedBack) {
  for (const auto& [head_dim, rotary] : {std::pair{8, 8}, {16, 6}, {64, 64}}) {
    const Plan plan = pairs({{4, 2, 3}, {5, 1, 9}});
    const AttentionShape shape = heads(4, 2, head_dim);
    const std::int64_t rows = plan.rows(), width = std::int64_t{4} * head_dim;
    const Matrix cos = random(12, rotary / 2), sin = random(12, rotary / 2);
    const Buffer in = put(random(rows, 2 * width)), gradient = put(random(rows, width)),
                 at = put(random_indices(rows, 12));
    const Buffer out = poisoned(rows, width), lse = poisoned(rows, 4);
    const Buffer apart = poisoned(rows, 2 * width), rotated = poisoned(rows, 2 * width, 1, 2);
    const Buffer c = put(cos, 0, 1), s = put(sin, 1, 1);
    backend_->attention(plan.view(), shape, in.view, out.view, lse.view);
    backend_->attention_backward(plan.view(), shape, in.view, out.view, lse.view, gradient.view, apart.view);
    backend_->rotate(at.view, c.view, s.view, head_dim, Rotation::inverse,
                     apart.view.columns(0, query_key_width(shape)));
    backend_->attention_backward(plan.view(), shape, in.view, out.view, lse.view, gradient.view, rotated.view,
                                 {at.view, c.view, s.view});
    expect_close(get(apart), rotated, tolerance::kExact);
  }
}

TEST_P(Attention, SmallGroups) { expect_attention(pairs({{4, 2, 3}, {1, 1, 1}, {3, 4, 1}}), heads(4, 2, 8), true); }
TEST_P(Attention, OneRow) { expect_attention(pairs({{1, 0, 0}}), heads(2, 1, 8), true); }
TEST_P(Attention, OddHeadDims) {
  for (const int head_dim : {1, 5, 12, 24, 33}) {
    expect_attention(pairs({{3, 2, 2}}), heads(3, 1, head_dim), true);
  }
}
TEST_P(Attention, BlocksOfQueriesAndGroupedHeads) {
  expect_attention(pairs({{35, 40, 3}, {2, 33, 34}}), heads(2, 1, 4), true);
  expect_attention(pairs({{70, 65, 100}, {10, 1, 31}}), heads(9, 3, 64), false);
  expect_attention(pairs({{129, 64, 32}}), heads(2, 2, 128), false);
}
TEST_P(Attention, EmptyContextAndEmptySegments) {
  Plan plan = pairs({{0, 6, 5}, {7, 0, 2}});
  expect_attention(plan, heads(2, 2, 8), true);
  // Whole sequences of their own, as without prefix sharing, and a group without segments.
  plan.segments = {{0, 5, 0, 0}, {5, 14, 5, 5}};
  plan.offsets = {0, 1, 1, 2};
  expect_attention(plan, heads(4, 1, 16), true);
}
TEST_P(Attention, ContextIsAPartOfThePrefix) {
  Plan plan;
  plan.segments = {{0, 9, 0, 0}, {9, 13, 2, 7}, {13, 50, 4, 11}};
  plan.offsets = {0, 3};
  expect_attention(plan, heads(2, 1, 8), true);
}
TEST_P(Attention, LargeScoresDoNotOverflow) {
  const Plan plan = pairs({{6, 5, 4}});
  const AttentionShape shape = heads(2, 1, 8);
  Matrix qkv = random(15, 32);
  for (double& v : qkv.values) v *= 32;
  const Buffer in = put(qkv);
  Buffer out = poisoned(15, 16), lse = poisoned(15, 2);
  backend_->attention(plan.view(), shape, in.view, out.view, lse.view);
  for (const double v : get(out).values) ASSERT_TRUE(std::isfinite(v));
  for (const double v : get(lse).values) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace fedpdpo
