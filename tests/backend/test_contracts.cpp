// What a caller must not do throws, and says so; views and tensors know their bounds.
#include "fixture.hpp"

namespace fedpdpo {
namespace {

class Contracts : public OperationTest {
 protected:
  View f32(std::int64_t rows, std::int64_t cols) {
    tensors_.emplace_back(*backend_, rows, cols);
    return tensors_.back().view();
  }
  View i32(std::int64_t cols) {
    tensors_.emplace_back(*backend_, 1, cols, DType::i32);
    return tensors_.back().view();
  }
  std::vector<Tensor> tensors_;
};
FEDPDPO_ON_EVERY_BACKEND(Contracts);

#define EXPECT_CONTRACT(statement) EXPECT_ANY_THROW(statement)

TEST_P(Contracts, Tensors) {
  const Tensor tensor(*backend_, 5, 7);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().data) % 64, 0u);
  EXPECT_EQ(tensor.bytes(), 140u);
  for (const float value : host_of(tensor)) EXPECT_EQ(value, 0);
  const View view = tensor.view();
  EXPECT_EQ(view.row_range(1, 3).columns(2, 6).data, view.f32() + 9);
  EXPECT_EQ(tensor.first(2).rows, 2);
  EXPECT_CONTRACT(tensor.first(6));
  EXPECT_CONTRACT(view.row_range(4, 6));
  EXPECT_CONTRACT(view.row_range(3, 2));
  EXPECT_CONTRACT(view.columns(-1, 2));
  EXPECT_CONTRACT(Tensor(*backend_, -1, 2));
  EXPECT_FALSE(Tensor());
  EXPECT_TRUE(tensor);
}

TEST_P(Contracts, ShapesAndTypes) {
  const View a = f32(4, 6), b = f32(4, 5), w = f32(1, 6), four = i32(4), wide = f32(4, 12);
  EXPECT_CONTRACT(backend_->axpy(1, a, b, Write::overwrite));
  EXPECT_CONTRACT(backend_->axpy(1, four, four, Write::overwrite));
  EXPECT_CONTRACT(backend_->fill(four, 1));
  EXPECT_CONTRACT(backend_->copy(a, b));
  EXPECT_CONTRACT(backend_->copy(four, w.columns(0, 4)));
  EXPECT_CONTRACT(backend_->rms_norm(a, w.columns(0, 5), 1e-5f, a));
  EXPECT_CONTRACT(backend_->layer_norm(a, w, w.columns(0, 5), 1e-5f, a));
  EXPECT_CONTRACT(backend_->head_norm(a, w, 4, 1e-5f, a));
  EXPECT_CONTRACT(backend_->head_norm(a, w.columns(0, 5), 3, 1e-5f, a));
  EXPECT_CONTRACT(backend_->head_norm_backward(a, w, 3, 1e-5f, b, a));
  EXPECT_CONTRACT(backend_->scale_rows(w, a));
  EXPECT_CONTRACT(backend_->scale_rows(four, a));
  EXPECT_CONTRACT(backend_->dot(a, b));
  EXPECT_CONTRACT(backend_->squared_norm(four));
  EXPECT_CONTRACT(backend_->gather_rows(a, w, a));
  EXPECT_CONTRACT(backend_->scatter_add_rows(a, i32(3), a));
  EXPECT_CONTRACT(backend_->linear(a, b, {}, a, Write::overwrite));
  EXPECT_CONTRACT(backend_->linear(a, f32(6, 6), w.columns(0, 5), a, Write::accumulate));
  EXPECT_CONTRACT(backend_->residual_rms_norm_backward(a, w, 1e-5f, a, a, a, f32(4, 6)));
  EXPECT_CONTRACT(backend_->residual_rms_norm_backward(a, w, 1e-5f, b, a, f32(4, 6), f32(4, 6)));
  EXPECT_CONTRACT(backend_->activation_backward(Activation::silu, a, a, a, b));
  const View over{a.data, 4, 6, 7, DType::f32}, row = f32(1, 4);
  EXPECT_CONTRACT(backend_->log_softmax_backward(four, row, row, a, over));
  EXPECT_CONTRACT(backend_->linear_backward(b, f32(6, 6), a, Write::overwrite));
  EXPECT_CONTRACT(backend_->gated_activation(Activation::silu, a, a));
  EXPECT_CONTRACT(backend_->gated_activation_backward(Activation::silu, wide, a, a));
  EXPECT_CONTRACT(backend_->dropout(1.0f, {}, 0, a, a, Write::overwrite));
  EXPECT_CONTRACT(backend_->dropout(-0.1f, {}, 0, a, a, Write::overwrite));
  EXPECT_CONTRACT(backend_->log_softmax(a, four, w.columns(0, 3), w.columns(0, 4)));
  EXPECT_CONTRACT(backend_->adamw({.step = 0}, a, a, a, a));
  EXPECT_CONTRACT(backend_->adamw({}, a, b, a, a));
  View overlapping = a;
  overlapping.stride = 5;
  EXPECT_CONTRACT(backend_->fill(overlapping, 1));
  EXPECT_CONTRACT(backend_->fill(View{nullptr, 2, 2, 2, DType::f32}, 1));
}

TEST_P(Contracts, Indices) {
  if (backend_->name() != "cpu") GTEST_SKIP() << "indices in device memory are not looked at";
  const View table = f32(5, 8), y = f32(1, 8), logits = f32(1, 8), one = f32(1, 1);
  for (const std::int32_t bad : {-1, 5}) {
    const Buffer index = put(Indices{bad});
    EXPECT_CONTRACT(backend_->embed(index.view, {}, table, {}, y));
    EXPECT_CONTRACT(backend_->gather_rows(table, index.view, y));
    EXPECT_CONTRACT(backend_->scatter_add_rows(y, index.view, table));
    EXPECT_CONTRACT(backend_->rotate(index.view, f32(5, 4), f32(5, 4), 8, Rotation::forward, y));
    EXPECT_CONTRACT(backend_->log_softmax(logits.columns(0, 5), index.view, one, one));
  }
}

TEST_P(Contracts, Members) {
  const View x = f32(6, 4), y = f32(6, 3), p = f32(2, 12), b = f32(2, 3);
  const ClientMatrix matrix{p.f32(), 3, 4, 12}, bias{b.f32(), 1, 3, 3};
  const auto multiply = [&](std::vector<MemberRows> members, ClientMatrix client) {
    backend_->grouped_matmul(members, Multiply::by_transpose, 1, x, client, y, Write::overwrite);
  };
  EXPECT_NO_THROW(multiply({{0, 2, 0}, {2, 6, 1}}, matrix));
  EXPECT_CONTRACT(multiply({{0, 7, 0}}, matrix));
  EXPECT_CONTRACT(multiply({{2, 4, 0}, {0, 1, 1}}, matrix));
  EXPECT_CONTRACT(multiply({{0, 3, 0}, {2, 4, 1}}, matrix));
  EXPECT_CONTRACT(multiply({{0, 3, -1}}, matrix));
  EXPECT_CONTRACT(multiply({{0, 3, 0}}, ClientMatrix{p.f32(), 4, 3, 12}));
  EXPECT_CONTRACT(multiply({{0, 3, 0}}, ClientMatrix{nullptr, 3, 4, 12}));
  const std::vector<MemberRows> members = {{0, 6, 0}};
  EXPECT_CONTRACT(backend_->grouped_outer(members, 1, x, y, matrix, Write::overwrite));
  EXPECT_CONTRACT(backend_->grouped_add_bias(members, bias, x));
  EXPECT_CONTRACT(backend_->grouped_column_sum(members, x, bias, Write::overwrite));
}

TEST_P(Contracts, LowRankSites) {
  const View u = f32(6, 4), d_u = f32(6, 4), y = f32(6, 9), p = f32(2, 10), g = f32(2, 10);
  const std::vector<MemberRows> members = {{0, 2, 0}, {2, 6, 1}};
  const auto b = [&](std::int64_t rows, std::int64_t cols) { return ClientMatrix{p.f32(), rows, cols, 10}; };
  const auto run = [&](std::vector<LowRankSite> sites, View gradient) {
    backend_->low_rank_up(members, 1, u, sites, y, Write::accumulate);
    backend_->low_rank_up_backward(members, 1, u, sites, y, gradient, Write::overwrite);
  };
  EXPECT_NO_THROW(run({{0, 5, 0, b(5, 2), {}}, {5, 9, 2, b(4, 2), {g.f32(), 4, 2, 10}}}, d_u));
  EXPECT_NO_THROW(run({}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 2), {}}, {4, 9, 2, b(5, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 2), {}}, {5, 9, 1, b(4, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{5, 10, 0, b(5, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 3, b(5, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(4, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 0), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 0, 0, b(0, 2), {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, {nullptr, 5, 2, 10}, {}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 2), {g.f32(), 2, 5, 10}}}, d_u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 2), {}}}, u));
  EXPECT_CONTRACT(run({{0, 5, 0, b(5, 2), {}}}, d_u.columns(0, 3)));
}

TEST_P(Contracts, AttentionPlans) {
  const AttentionShape shape{2, 1, 8, 0.35f};
  const View qkv = f32(10, 32), out = f32(10, 16), lse = f32(10, 2);
  const auto attend = [&](std::vector<Segment> segments, std::vector<std::int32_t> offsets, AttentionShape heads) {
    backend_->attention({segments, offsets}, heads, qkv, out, lse);
  };
  EXPECT_NO_THROW(attend({{0, 4, 0, 0}, {4, 10, 0, 4}}, {0, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 4, 0, 0}, {4, 9, 0, 4}}, {0, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 4, 0, 0}, {5, 10, 0, 4}}, {0, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 4, 0, 0}, {4, 10, 0, 5}}, {0, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 4, 0, 0}, {4, 10, 0, 4}}, {0, 1, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 10, 0, 0}}, {0, 2}, shape));
  EXPECT_CONTRACT(attend({{0, 10, 0, 0}}, {}, shape));
  EXPECT_CONTRACT(attend({{0, 10, 0, 0}}, {0, 1}, {3, 2, 8, 1}));
  EXPECT_CONTRACT(attend({{0, 10, 0, 0}}, {0, 1}, {2, 1, 16, 1}));
}

TEST_P(Contracts, AttentionInBf16) {
  const AttentionShape shape{2, 1, 8, 0.35f};
  const std::vector<Segment> segments = {{0, 10, 0, 0}};
  const std::vector<std::int32_t> offsets = {0, 1};
  const Tensor half_qkv(*backend_, 10, 32, DType::bf16), half_out(*backend_, 10, 16, DType::bf16);
  const Tensor half_lse(*backend_, 10, 2, DType::bf16), d_half_qkv(*backend_, 10, 32, DType::bf16);
  const View qkv = half_qkv.view(), out = half_out.view(), d_qkv = d_half_qkv.view(), lse = f32(10, 2);
  const auto attend = [&](ConstView in, View to, View with) {
    backend_->attention({segments, offsets}, shape, in, to, with);
  };
  const auto back = [&](ConstView in, ConstView from, ConstView gradient, View to) {
    backend_->attention_backward({segments, offsets}, shape, in, from, lse, gradient, to);
  };
  if (backend_->supports_bf16_activations()) {
    EXPECT_NO_THROW(attend(qkv, out, lse));
    EXPECT_NO_THROW(back(qkv, out, out, d_qkv));
  } else {
    EXPECT_CONTRACT(attend(qkv, out, lse));
    EXPECT_CONTRACT(back(qkv, out, out, d_qkv));
  }
  EXPECT_CONTRACT(attend(qkv, out, half_lse.view()));
  EXPECT_CONTRACT(attend(qkv, f32(10, 16), lse));
  EXPECT_CONTRACT(attend(f32(10, 32), out, lse));
  EXPECT_CONTRACT(back(f32(10, 32), f32(10, 16), f32(10, 16), d_qkv));
  EXPECT_CONTRACT(back(qkv, f32(10, 16), out, d_qkv));
  EXPECT_CONTRACT(back(qkv, out, f32(10, 16), d_qkv));
  EXPECT_CONTRACT(back(qkv, out, out, qkv));
}

TEST(CpuBackend, NeedsAThread) { EXPECT_CONTRACT(make_cpu_backend({.num_threads = 0})); }

TEST(CpuBackend, DescribesItself) {
  const auto backend = make_cpu_backend({.num_threads = 2});
  EXPECT_EQ(backend->name(), "cpu");
  EXPECT_NE(backend->description().find("2 threads"), std::string::npos);
}

}  // namespace
}  // namespace fedpdpo
