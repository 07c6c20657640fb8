// Embedding, norms, axpy, scaled rows, copies, gather and scatter against the reference.
#include "fixture.hpp"

namespace fedpdpo {
namespace {

class Rows : public OperationTest {};
FEDPDPO_ON_EVERY_BACKEND(Rows);

struct Shape {
  std::int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 64}, {3, 7}, {5, 17}, {4, 33}, {9, 130}, {7, 576}, {64, 300}};
// Not fewer columns: the gradient of a norm over one or two is a difference of equal numbers.
constexpr Shape kSmallShapes[] = {{1, 5}, {2, 7}, {3, 16}, {4, 33}, {2, 70}};

TEST_P(Rows, EmbedWithAndWithoutPositions) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix table = rounded_to_bf16(random(11, cols)), position_table = rounded_to_bf16(random(6, cols));
    const Indices tokens = random_indices(rows, 11), positions = random_indices(rows, 6);
    for (const bool half : {false, true}) {
      const Buffer t = half ? put_bf16(table, 3) : put(table, 1, 2);
      const Buffer p = half ? put_bf16(position_table, 1) : put(position_table, 0, 5);
      Buffer y = poisoned(rows, cols, 2, 3);
      backend_->embed(put(tokens).view, put(positions).view, t.view, {}, y.view);
      expect_close(reference::embed(tokens, positions, table, {}), y, tolerance::kExact);
      y = poisoned(rows, cols, 2, 3);
      backend_->embed(put(tokens).view, put(positions).view, t.view, p.view, y.view);
      expect_close(reference::embed(tokens, positions, table, position_table), y, tolerance::kElementwise);
    }
  }
}

TEST_P(Rows, RmsNorm) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols), w = random(1, cols);
    Buffer y = poisoned(rows, cols, 1, 4);
    backend_->rms_norm(put(x, 3, 2).view, put(w).view, 1e-5f, y.view);
    expect_close(reference::rms_norm(x, w, 1e-5f), y, tolerance::kElementwise);
  }
}

TEST_P(Rows, RmsNormBackward) {
  for (const auto [rows, cols] : kSmallShapes) {
    const Matrix x = random(rows, cols), w = random(1, cols), d_y = random(rows, cols), before = random(rows, cols);
    const Matrix expected =
        reference::gradient([&](const Matrix& at) { return dot(reference::rms_norm(at, w, 1e-2f), d_y); }, x);
    Buffer d_x = poisoned(rows, cols, 2, 1);
    backend_->rms_norm_backward(put(x, 1, 1).view, put(w).view, 1e-2f, put(d_y, 0, 3).view, d_x.view, Write::overwrite);
    expect_close(expected, d_x, tolerance::kGradient);
    d_x = put(before, 2, 1);
    backend_->rms_norm_backward(put(x, 1, 1).view, put(w).view, 1e-2f, put(d_y, 0, 3).view, d_x.view,
                                Write::accumulate);
    expect_close(add(before, expected), d_x, tolerance::kGradient);
  }
}

TEST_P(Rows, LayerNorm) {
  for (const auto [rows, cols] : kShapes) {
    Matrix x = random(rows, cols);
    const Matrix w = random(1, cols), b = random(1, cols);
    for (double& value : x.values) value += 3;
    for (double& value : x.values) value = static_cast<float>(value);
    Buffer y = poisoned(rows, cols, 1, 4);
    backend_->layer_norm(put(x, 3, 2).view, put(w).view, put(b).view, 1e-5f, y.view);
    // The mean is subtracted from numbers three times their spread.
    expect_close(reference::layer_norm(x, w, b, 1e-5f), y, 3 * tolerance::kElementwise);
  }
}

TEST_P(Rows, LayerNormBackward) {
  for (const auto [rows, cols] : kSmallShapes) {
    const Matrix x = random(rows, cols), w = random(1, cols), d_y = random(rows, cols), before = random(rows, cols);
    const Matrix b(1, cols);
    const Matrix expected =
        reference::gradient([&](const Matrix& at) { return dot(reference::layer_norm(at, w, b, 1e-2f), d_y); }, x);
    Buffer d_x = poisoned(rows, cols, 2, 1);
    backend_->layer_norm_backward(put(x, 1, 1).view, put(w).view, 1e-2f, put(d_y, 0, 3).view, d_x.view,
                                  Write::overwrite);
    expect_close(expected, d_x, tolerance::kGradient);
    d_x = put(before, 2, 1);
    backend_->layer_norm_backward(put(x, 1, 1).view, put(w).view, 1e-2f, put(d_y, 0, 3).view, d_x.view,
                                  Write::accumulate);
    expect_close(add(before, expected), d_x, tolerance::kGradient);
  }
}

TEST_P(Rows, HeadNorm) {
  for (const auto [rows, heads, head_dim] :
       {std::array<std::int64_t, 3>{1, 1, 5}, {3, 6, 8}, {5, 3, 33}, {40, 5, 128}}) {
    const std::int64_t cols = heads * head_dim;
    const auto dim = static_cast<std::int32_t>(head_dim);
    const Matrix x = random(rows, cols), w = random(1, cols);
    for (const std::int64_t padding : {3, 4}) {
      Buffer y = poisoned(rows, cols, 4, padding);
      backend_->head_norm(put(x, 4, padding).view, put(w).view, dim, 1e-5f, y.view);
      expect_close(reference::head_norm(x, w, head_dim, 1e-5f), y, tolerance::kElementwise);
      y = put(x, padding, 4);
      backend_->head_norm(y.view, put(w).view, dim, 1e-5f, y.view);
      expect_close(reference::head_norm(x, w, head_dim, 1e-5f), y, tolerance::kElementwise);
    }
  }
}

TEST_P(Rows, HeadNormBackward) {
  for (const auto [rows, heads, head_dim] : {std::array<std::int64_t, 3>{1, 1, 5}, {3, 6, 8}, {2, 3, 33}}) {
    const std::int64_t cols = heads * head_dim;
    const auto dim = static_cast<std::int32_t>(head_dim);
    const Matrix x = random(rows, cols), w = random(1, cols), d_y = random(rows, cols);
    const Matrix expected = reference::gradient(
        [&](const Matrix& at) { return dot(reference::head_norm(at, w, head_dim, 1e-2f), d_y); }, x);
    Buffer d_x = poisoned(rows, cols, 4, 4);
    backend_->head_norm_backward(put(x, 4, 4).view, put(w).view, dim, 1e-2f, put(d_y, 4, 4).view, d_x.view);
    expect_close(expected, d_x, tolerance::kGradient);
    d_x = put(d_y, 2, 1);
    backend_->head_norm_backward(put(x, 1, 3).view, put(w).view, dim, 1e-2f, d_x.view, d_x.view);
    expect_close(expected, d_x, tolerance::kGradient);
  }
}

TEST_P(Rows, ARowOfANormHasTheSameBitsAlone) {
  // Rows an odd number of columns apart, of which the first alone begins at 16 bytes.
  const Matrix x = random(5, 512), w = random(1, 512), b = random(1, 512), d_y = random(5, 512);
  const Buffer in = put(x, 0, 3), scale = put(w), shift = put(b), gradient = put(d_y, 0, 3);
  const auto run = [&](std::int64_t rows, const Buffer& rms, const Buffer& layer, const Buffer& d_x) {
    const auto first = [&](const Buffer& of) { return of.view.row_range(0, rows); };
    backend_->rms_norm(first(in), scale.view, 1e-5f, first(rms));
    backend_->layer_norm(first(in), scale.view, shift.view, 1e-5f, first(layer));
    backend_->rms_norm_backward(first(in), scale.view, 1e-5f, first(gradient), first(d_x), Write::overwrite);
  };
  const Buffer together[] = {poisoned(5, 512, 0, 3), poisoned(5, 512, 0, 3), poisoned(5, 512, 0, 3)};
  const Buffer alone[] = {poisoned(5, 512, 0, 3), poisoned(5, 512, 0, 3), poisoned(5, 512, 0, 3)};
  run(5, together[0], together[1], together[2]);
  run(1, alone[0], alone[1], alone[2]);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(rows_of(get(alone[i]), {0, 1, 0}).values, rows_of(get(together[i]), {0, 1, 0}).values) << i;
}

TEST_P(Rows, NormsWorkInPlace) {
  const Matrix x = random(5, 70), w = random(1, 70), b = random(1, 70);
  Buffer y = put(x, 1, 1);
  backend_->rms_norm(y.view, put(w).view, 1e-5f, y.view);
  expect_close(reference::rms_norm(x, w, 1e-5f), y, tolerance::kElementwise);
  y = put(x, 1, 1);
  backend_->layer_norm(y.view, put(w).view, put(b).view, 1e-5f, y.view);
  expect_close(reference::layer_norm(x, w, b, 1e-5f), y, 2 * tolerance::kElementwise);
}

TEST_P(Rows, AddAndResidualRmsNorm) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols), delta = random(rows, cols), w = random(1, cols), sum = add(x, delta);
    for (const int place : {0, 1, 2}) {  // the sum apart, over x, over delta
      const Buffer a = put(x, 3, 2), b = put(delta, 1, 2);
      Buffer to = place == 0 ? poisoned(rows, cols, 1, 1) : place == 1 ? a : b;
      backend_->add(a.view, b.view, to.view);
      expect_close(sum, to, tolerance::kElementwise);
      const Buffer c = put(x, 3, 2), d = put(delta, 1, 2);
      to = place == 0 ? poisoned(rows, cols, 1, 1) : place == 1 ? c : d;
      Buffer y = poisoned(rows, cols, 1, 4);
      backend_->residual_rms_norm(c.view, d.view, put(w).view, 1e-5f, to.view, y.view);
      expect_close(sum, to, tolerance::kElementwise);
      expect_close(reference::rms_norm(sum, w, 1e-5f), y, 2 * tolerance::kElementwise);
    }
  }
}

TEST_P(Rows, ResidualRmsNormBackward) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix sum = random(rows, cols), w = random(1, cols), d_y = random(rows, cols), before = random(rows, cols);
    const Buffer at = put(sum, 3, 2), gradient = put(d_y, 1, 2), expected = put(before, 1, 1);
    const Buffer d_sum = put(before, 1, 1);
    Buffer d_delta = poisoned(rows, cols, 2, 1), y = poisoned(rows, cols, 1, 4), normed = poisoned(rows, cols, 1, 4);
    backend_->rms_norm_backward(at.view, put(w).view, 1e-5f, gradient.view, expected.view, Write::accumulate);
    backend_->rms_norm(at.view, put(w).view, 1e-5f, normed.view);
    backend_->residual_rms_norm_backward(at.view, put(w).view, 1e-5f, gradient.view, d_sum.view, d_delta.view, y.view);
    expect_close(get(expected), d_sum, tolerance::kElementwise);
    expect_close(get(d_sum), d_delta, tolerance::kExact);
    expect_close(get(normed), y, tolerance::kElementwise);
  }
}

TEST_P(Rows, Axpy) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols), before = random(rows, cols);
    Buffer y = poisoned(rows, cols, 3, 1);
    backend_->axpy(-0.75f, put(x, 1, 2).view, y.view, Write::overwrite);
    expect_close(scale(-0.75, x), y, tolerance::kElementwise);
    y = put(before, 3, 1);
    backend_->axpy(2.5f, put(x, 1, 2).view, y.view, Write::accumulate);
    expect_close(add(before, scale(2.5, x)), y, tolerance::kElementwise);
  }
}

TEST_P(Rows, ScaleRows) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols);
    Matrix weights = random(1, rows);
    weights(0, rows / 2) = 0;
    const Buffer in_place = put(x, 3, 2);
    backend_->scale_rows(put(weights, 1, 1).view, in_place.view);
    expect_close(reference::scale_rows(weights, x), in_place, tolerance::kElementwise);
  }
}

TEST_P(Rows, FillAndCopy) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols);
    Buffer y = poisoned(rows, cols, 2, 2);
    backend_->fill(y.view, 1.5f);
    expect_close(Matrix(rows, cols, 1.5), y, tolerance::kExact);
    y = poisoned(rows, cols, 2, 2);
    backend_->copy(put(x, 1, 0).view, y.view);
    expect_close(x, y, tolerance::kExact);
    Buffer half = put_bf16(Matrix(rows, cols), 1);
    backend_->copy(put(x, 1, 0).view, half.view);
    y = poisoned(rows, cols, 2, 2);
    backend_->copy(half.view, y.view);
    expect_close(rounded_to_bf16(x), y, tolerance::kExact);
  }
}

TEST_P(Rows, Bf16RoundsTiesToEvenAndKeepsNotANumber) {
  Matrix x(1, 6);
  x.values = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 3.5e38, -INFINITY, NAN, 1e-45};
  Buffer half = put_bf16(Matrix(1, 6)), y = poisoned(1, 6);
  backend_->copy(put(x).view, half.view);
  backend_->copy(half.view, y.view);
  const Matrix found = get(y);
  EXPECT_EQ(found(0, 0), 1.0);
  EXPECT_EQ(found(0, 1), 1 + 0x1p-6);
  EXPECT_EQ(found(0, 2), INFINITY);
  EXPECT_EQ(found(0, 3), -INFINITY);
  EXPECT_TRUE(std::isnan(found(0, 4)));
  EXPECT_EQ(found(0, 5), 0);
}

TEST_P(Rows, GatherAndScatterAdd) {
  for (const auto [rows, cols] : kShapes) {
    const Matrix x = random(rows, cols), more = random(9, cols);
    const Indices indices = random_indices(9, rows);  // with repetitions
    Buffer y = poisoned(9, cols, 1, 1);
    backend_->gather_rows(put(x, 0, 2).view, put(indices).view, y.view);
    expect_close(reference::gather(x, indices), y, tolerance::kExact);
    Buffer sum = put(x, 2, 0);
    backend_->scatter_add_rows(put(more, 1, 1).view, put(indices).view, sum.view);
    Matrix expected = x;
    for (std::int64_t i = 0; i < 9; ++i) {
      for (std::int64_t c = 0; c < cols; ++c) expected(indices[i], c) += more(i, c);
    }
    expect_close(expected, sum, tolerance::kElementwise);
  }
}

TEST_P(Rows, NothingToDo) {
  Buffer y = poisoned(0, 8), x = poisoned(0, 8), none = put(Indices{});
  backend_->axpy(1, x.view, y.view, Write::overwrite);
  backend_->gather_rows(put(random(3, 8)).view, none.view, y.view);
  backend_->scale_rows(poisoned(1, 0).view, y.view);
  Buffer sum = put(Matrix(3, 8, 1));
  backend_->scatter_add_rows(x.view, none.view, sum.view);
  expect_close(Matrix(3, 8, 1), sum, tolerance::kExact);
}

}  // namespace
}  // namespace fedpdpo
