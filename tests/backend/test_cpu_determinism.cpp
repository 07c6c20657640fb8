// The CPU's promise: the same call gives the same bits, a row has the same bits in any batch, and the operations by
// rows and the attention have the same bits for any number of threads.
#include <algorithm>

#include "fixture.hpp"

namespace fedpdpo {
namespace {

struct LinearShape {
  std::int64_t in, out;
};
constexpr LinearShape kLinear[] = {{64, 64},  {64, 128},  {64, 512},   {172, 64},   {288, 288}, {288, 768},
                                   {576, 64}, {576, 576}, {576, 1536}, {1536, 576}, {576, 4096}};

using Bits = std::vector<std::uint32_t>;

class CpuDeterminism : public testing::Test {
 protected:
  /// A backend, and matrices drawn from a stream that starts anew.
  struct Run {
    std::unique_ptr<Backend> backend;
    RandomStream stream{StreamId{.seed = 5, .purpose = Purpose::test}};
    std::vector<Tensor> tensors;

    explicit Run(int num_threads) : backend(make_cpu_backend({.num_threads = num_threads})) {}
    View random(std::int64_t rows, std::int64_t cols, double spread = 1) {
      const View view = empty(rows, cols);
      for (std::int64_t i = 0; i < view.size(); ++i) view.f32()[i] = static_cast<float>(spread * stream.normal());
      return view;
    }
    View empty(std::int64_t rows, std::int64_t cols) {
      tensors.emplace_back(*backend, rows, cols);
      return tensors.back().view();
    }
    View indices(std::int64_t count, std::uint64_t bound) {
      tensors.emplace_back(*backend, 1, count, DType::i32);
      for (std::int64_t i = 0; i < count; ++i) {
        tensors.back().view().i32()[i] = static_cast<std::int32_t>(stream.below(bound));
      }
      return tensors.back().view();
    }
    View bf16(View x) {
      tensors.emplace_back(*backend, x.rows, x.cols, DType::bf16);
      backend->copy(x, tensors.back().view());
      return tensors.back().view();
    }
  };
  static Bits bits(ConstView view) {
    Bits result;
    for (std::int64_t r = 0; r < view.rows; ++r) {
      const auto* row = reinterpret_cast<const std::uint32_t*>(view.f32() + r * view.stride);
      result.insert(result.end(), row, row + view.cols);
    }
    return result;
  }

  /// All operations by rows on rows [begin, end) of one set of inputs.
  static std::vector<Bits> row_operations(int num_threads, std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kRows = 90, d = 300;
    Run run(num_threads);
    Backend& b = *run.backend;
    const View x = run.random(kRows, d), d_y = run.random(kRows, d), w = run.random(1, d), bias = run.random(1, d);
    const View cos = run.random(20, 25), sin = run.random(20, 25), g = run.random(1, d);
    const View tokens = run.indices(kRows, 20), table = run.random(20, d), d_half = run.random(kRows, d / 2);
    const View coefficient = run.random(1, kRows);
    std::vector<Bits> results;
    const auto out = [&] { return run.empty(end - begin, d); };
    const auto part = [&](View view) { return view.row_range(begin, end); };
    const auto keep = [&](View view) { results.push_back(bits(view)); };
    const auto with = [&](View y, auto&& operation) {
      operation(y);
      keep(y);
    };
    const std::vector<MemberRows> all = {{0, static_cast<std::int32_t>(end - begin), 0}};
    const View at = tokens.columns(begin, end);
    with(out(), [&](View y) { b.embed(at, {}, table, {}, y); });
    with(out(), [&](View y) { b.rms_norm(part(x), w, 1e-5f, y); });
    with(out(), [&](View y) { b.rms_norm_backward(part(x), w, 1e-5f, part(d_y), y, Write::accumulate); });
    with(out(), [&](View y) { b.head_norm(part(x), w, 50, 1e-5f, y); });
    with(out(), [&](View y) { b.head_norm_backward(part(x), w, 50, 1e-5f, part(d_y), y); });
    with(out(), [&](View y) { b.layer_norm(part(x), w, bias, 1e-5f, y); });
    with(out(), [&](View y) { b.layer_norm_backward(part(x), w, 1e-5f, part(d_y), y, Write::overwrite); });
    with(out(), [&](View y) { b.axpy(0.3f, part(x), y, Write::accumulate); });
    with(out(), [&](View y) {
      b.copy(part(x), y);
      b.scale_rows(coefficient.columns(begin, end), y);
    });
    with(out(), [&](View y) { b.gather_rows(table, at, y); });
    with(out(), [&](View y) {
      b.copy(part(x), y);
      b.grouped_add_bias(all, {bias.f32(), 1, d, d}, y);
    });
    with(out(), [&](View y) { b.grouped_gate(all, part(x), part(d_y), {g.f32(), 1, d, d}, y); });
    with(out(), [&](View y) {
      b.copy(part(x), y);
      b.rotate(at, cos, sin, 50, Rotation::forward, y);
    });
    for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
      with(out(), [&](View y) { b.activation(kind, part(x), y); });
      with(out(), [&](View y) { b.activation_backward(kind, part(x), part(d_y), y); });
      with(run.empty(end - begin, d / 2), [&](View y) { b.gated_activation(kind, part(x), y); });
      with(out(), [&](View y) { b.gated_activation_backward(kind, part(x), part(d_half), y); });
    }
    with(out(), [&](View y) {
      b.dropout(0.2f, {.seed = 3, .purpose = Purpose::dropout}, begin, part(x), y, Write::overwrite);
    });
    const View lse = run.empty(1, end - begin), log_prob = run.empty(1, end - begin), logits = out();
    b.copy(part(x), logits);
    b.log_softmax(logits, at, log_prob, lse);
    results.push_back(bits({log_prob.data, end - begin, 1, 1, DType::f32}));
    results.push_back(bits({lse.data, end - begin, 1, 1, DType::f32}));
    b.log_softmax_backward(at, lse, coefficient.columns(begin, end), logits, logits);
    keep(logits);
    return results;
  }

  /// Rows [begin, end) of x through frozen and per-client maps of many shapes.
  static std::vector<Bits> products(int num_threads, std::int64_t begin, std::int64_t end) {
    Run run(num_threads);
    std::vector<Bits> results;
    for (const auto [in, out] : kLinear) {
      const View x = run.random(96, in), w = run.random(out, in), half = run.bf16(w);
      for (const View& weights : {w, half}) {
        const View y = run.empty(end - begin, out), back = run.empty(end - begin, in);
        run.backend->linear(x.row_range(begin, end), weights, {}, y, Write::overwrite);
        results.push_back(bits(y));
        run.backend->linear_backward(y, weights, back, Write::accumulate);
        results.push_back(bits(back));
      }
    }
    const std::vector<MemberRows> member = {{0, static_cast<std::int32_t>(end - begin), 0}};
    for (const std::int64_t d : {64, 172, 512, 576, 1536}) {
      for (const std::int64_t rank : {4, 8, 16, 64}) {
        const View x = run.random(96, d), p = run.random(rank, d);
        const View low = run.empty(end - begin, rank), high = run.empty(end - begin, d);
        const ConstClientMatrix matrix{p.f32(), rank, d, 0};
        run.backend->grouped_matmul(member, Multiply::by_transpose, 2, x.row_range(begin, end), matrix, low,
                                    Write::overwrite);
        run.backend->grouped_matmul(member, Multiply::by_matrix, 2, low, matrix, high, Write::accumulate);
        results.push_back(bits(low));
        results.push_back(bits(high));
      }
    }
    return results;
  }

  /// Bits of the rows [begin, end) of a batch that had `rows`.
  static std::vector<Bits> cut(const std::vector<Bits>& whole, std::int64_t rows, std::int64_t begin,
                               std::int64_t end) {
    std::vector<Bits> parts;
    for (const Bits& all : whole) {
      const auto width = static_cast<std::int64_t>(all.size()) / rows;
      parts.emplace_back(all.begin() + begin * width, all.begin() + end * width);
    }
    return parts;
  }

  /// Everything else that several threads could disturb.
  static std::vector<Bits> sums(int num_threads) {
    Run run(num_threads);
    Backend& b = *run.backend;
    std::vector<Bits> results;
    const View x = run.random(90, 300), d_y = run.random(90, 520), y = run.random(40, 300);
    b.scatter_add_rows(x, run.indices(90, 40), y);
    results.push_back(bits(y));
    const std::vector<MemberRows> members = {{0, 50, 0}, {50, 90, 1}};
    for (const std::int64_t cols : {8, 64, 520}) {
      const View outer = run.random(2, cols * 300), sum = run.random(2, cols);
      b.grouped_outer(members, 0.5f, d_y.columns(0, cols), x, {outer.f32(), cols, 300, cols * 300}, Write::accumulate);
      b.grouped_column_sum(members, d_y.columns(0, cols), {sum.f32(), 1, cols, cols}, Write::accumulate);
      results.push_back(bits(outer));
      results.push_back(bits(sum));
    }
    const View g = run.random(2, 300), d_g = run.random(2, 300), d_h = run.empty(90, 300), d_a = run.empty(90, 300);
    b.grouped_gate_backward(members, x, d_y.columns(0, 300), {g.f32(), 1, 300, 300}, d_y.columns(200, 500), d_h,
                            Write::overwrite, d_a, {d_g.f32(), 1, 300, 300}, Write::accumulate);
    for (const View& view : {d_g, d_h, d_a}) results.push_back(bits(view));
    const View flat = run.random(1, 100001), gradients = run.random(1, 100001), m = run.empty(1, 100001),
               v = run.empty(1, 100001);
    b.adamw({}, flat, gradients, m, v);
    for (const View& view : {flat, m, v}) results.push_back(bits(view));
    for (const double sum : {b.squared_norm(gradients), b.dot(gradients, m), b.dot(x, d_y.columns(0, 300))}) {
      Bits sum_bits(2);
      std::memcpy(sum_bits.data(), &sum, sizeof sum);
      results.push_back(sum_bits);
    }
    return results;
  }

  /// Attention of two equal groups and a third one: forward and backward.
  static std::vector<Bits> attention(int num_threads) {
    Run run(num_threads);
    const std::vector<Segment> segments = {
        {0, 40, 0, 0}, {40, 90, 0, 40}, {90, 100, 0, 40}, {100, 103, 0, 0}, {103, 109, 100, 103}};
    const std::vector<std::int32_t> offsets = {0, 3, 5};
    const AttentionShape shape{6, 3, 24, 0.2f};
    const View qkv = run.random(109, 12 * 24), d_out = run.random(109, 6 * 24), out = run.empty(109, 6 * 24),
               lse = run.empty(109, 6), d_qkv = run.empty(109, 12 * 24);
    run.backend->attention({segments, offsets}, shape, qkv, out, lse);
    run.backend->attention_backward({segments, offsets}, shape, qkv, out, lse, d_out, d_qkv);
    // The last group alone has the same bits.
    const std::vector<Segment> alone = {{0, 3, 0, 0}, {3, 9, 0, 3}};
    const std::vector<std::int32_t> one = {0, 2};
    const View part_out = run.empty(9, 6 * 24), part_lse = run.empty(9, 6), part_d = run.empty(9, 12 * 24);
    run.backend->attention({alone, one}, shape, qkv.row_range(100, 109), part_out, part_lse);
    run.backend->attention_backward({alone, one}, shape, qkv.row_range(100, 109), part_out, part_lse,
                                    d_out.row_range(100, 109), part_d);
    EXPECT_EQ(bits(part_out), bits(out.row_range(100, 109)));
    EXPECT_EQ(bits(part_lse), bits(lse.row_range(100, 109)));
    EXPECT_EQ(bits(part_d), bits(d_qkv.row_range(100, 109)));
    return {bits(out), bits(lse), bits(d_qkv)};
  }
};

TEST_F(CpuDeterminism, RunsAgree) {
  EXPECT_EQ(row_operations(1, 0, 90), row_operations(1, 0, 90));
  EXPECT_EQ(products(1, 0, 96), products(1, 0, 96));
  EXPECT_EQ(products(2, 0, 96), products(2, 0, 96));
  EXPECT_EQ(sums(2), sums(2));
  EXPECT_EQ(attention(2), attention(2));
}

TEST_F(CpuDeterminism, ThreadsAgree) {
  EXPECT_EQ(row_operations(1, 0, 90), row_operations(2, 0, 90));
  EXPECT_EQ(sums(1), sums(2));
  EXPECT_EQ(attention(1), attention(2));
  EXPECT_EQ(products(1, 0, 96), products(2, 0, 96));
}

TEST_F(CpuDeterminism, ARowHasTheSameBitsInAnyBatch) {
  const auto rows = row_operations(1, 0, 90);
  EXPECT_EQ(cut(rows, 90, 0, 45), row_operations(1, 0, 45));
  EXPECT_EQ(cut(rows, 90, 37, 38), row_operations(2, 37, 38));
  const auto whole = products(1, 0, 96);
  for (const auto& [begin, end] : {std::pair{0, 48}, {48, 96}, {7, 30}, {5, 6}, {9, 11}, {20, 23}, {31, 44}}) {
    const auto part = products(1, begin, end), expected = cut(whole, 96, begin, end);
    for (std::size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], expected[i]) << "product " << i;
  }
}

}  // namespace
}  // namespace fedpdpo
