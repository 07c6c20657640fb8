// Activations and dropout against the reference.
#include "fixture.hpp"

namespace fedpdpo {
namespace {

class Activations : public OperationTest {};
FEDPDPO_ON_EVERY_BACKEND(Activations);

constexpr Activation kKinds[] = {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf};
constexpr std::int64_t kCols[] = {1, 7, 16, 50, 172};

TEST_P(Activations, Plain) {
  for (const Activation kind : kKinds) {
    for (const std::int64_t cols : kCols) {
      const Matrix x = random(5, cols, 2), d_y = random(5, cols);
      Buffer y = poisoned(5, cols, 1, 2);
      backend_->activation(kind, put(x, 2, 0).view, y.view);
      expect_close(reference::activation(kind, x), y, tolerance::kActivation);
      const Matrix expected =
          reference::gradient([&](const Matrix& at) { return dot(reference::activation(kind, at), d_y); }, x);
      Buffer d_x = poisoned(5, cols, 1, 2);
      backend_->activation_backward(kind, put(x, 2, 0).view, put(d_y, 0, 3).view, d_x.view);
      expect_close(expected, d_x, tolerance::kGradient);
      const Buffer over_x = put(x, 1, 1), over_d_y = put(d_y, 1, 1);
      backend_->activation_backward(kind, put(x).view, over_d_y.view, over_d_y.view);
      expect_close(expected, over_d_y, tolerance::kGradient);
      Buffer again = poisoned(5, cols, 2, 1);
      backend_->activation_backward(kind, over_x.view, put(d_y).view, over_x.view, again.view);
      expect_close(expected, over_x, tolerance::kGradient);
      expect_close(reference::activation(kind, x), again, tolerance::kActivation);
    }
  }
}

TEST_P(Activations, Gated) {
  for (const Activation kind : kKinds) {
    for (const std::int64_t cols : kCols) {
      const Matrix x = random(4, 2 * cols, 2), d_y = random(4, cols);
      Buffer y = poisoned(4, cols, 1, 2);
      backend_->gated_activation(kind, put(x, 2, 0).view, y.view);
      expect_close(reference::gated_activation(kind, x), y, tolerance::kActivation);
      const Matrix expected =
          reference::gradient([&](const Matrix& at) { return dot(reference::gated_activation(kind, at), d_y); }, x);
      Buffer d_x = poisoned(4, 2 * cols, 1, 2);
      backend_->gated_activation_backward(kind, put(x, 2, 0).view, put(d_y, 0, 3).view, d_x.view);
      expect_close(expected, d_x, tolerance::kGradient);
      d_x = put(x, 1, 2);
      backend_->gated_activation_backward(kind, d_x.view, put(d_y).view, d_x.view);
      expect_close(expected, d_x, tolerance::kGradient);
      d_x = put(x, 1, 2);
      const Buffer over_d_y = put(d_y, 2, 1);
      backend_->gated_activation_backward(kind, d_x.view, over_d_y.view, d_x.view, over_d_y.view);
      expect_close(expected, d_x, tolerance::kGradient);
      expect_close(reference::gated_activation(kind, x), over_d_y, tolerance::kActivation);
    }
  }
}

TEST_P(Activations, WholeRangeOfArguments) {
  Matrix x(1, 4001);
  for (std::int64_t i = 0; i < x.cols; ++i) x(0, i) = static_cast<float>(-20 + 0.01 * static_cast<double>(i));
  for (const Activation kind : kKinds) {
    Buffer y = poisoned(1, x.cols), slope = poisoned(1, x.cols);
    backend_->activation(kind, put(x).view, y.view);
    backend_->activation_backward(kind, put(x).view, put(Matrix(1, x.cols, 1)).view, slope.view);
    const Matrix value = get(y), derivative = get(slope);
    for (std::int64_t i = 0; i < x.cols; ++i) {
      const double at = x(0, i), exact = reference::activate(kind, at);
      ASSERT_NEAR(value(0, i), exact, 2.5e-7 * std::max(1.0, std::abs(at))) << at;
      const double step = 1e-5;
      const double expected =
          (reference::activate(kind, at + step) - reference::activate(kind, at - step)) / (2 * step);
      ASSERT_NEAR(derivative(0, i), expected, 1e-6) << at;
    }
  }
}

TEST_P(Activations, ExtremeArgumentsStayFinite) {
  Matrix x(1, 6);
  x.values = {-1e30, -200, -90, 90, 200, 1e10};
  for (const Activation kind : kKinds) {
    Buffer y = poisoned(1, 6), slope = poisoned(1, 6);
    backend_->activation(kind, put(x).view, y.view);
    backend_->activation_backward(kind, put(x).view, put(Matrix(1, 6, 1)).view, slope.view);
    const Matrix value = get(y), derivative = get(slope);
    for (std::int64_t i = 0; i < 6; ++i) {
      EXPECT_NEAR(value(0, i), std::max(0.0, x(0, i)), 1e-6 * std::abs(x(0, i)));
      EXPECT_NEAR(derivative(0, i), x(0, i) > 0 ? 1 : 0, 1e-6) << x(0, i);
    }
  }
}

TEST_P(Activations, Dropout) {
  for (const std::int64_t cols : {1, 3, 4, 16, 63, 64, 65, 576}) {
    for (const float p : {0.0f, 0.1f, 0.5f, 0.999f, 1e-8f}) {
      const StreamId id{.seed = 7, .purpose = Purpose::dropout, .client = 3, .round = 11, .step = 5};
      const Matrix x = random(6, cols), before = random(6, cols);
      const Matrix mask = reference::dropout_mask(p, id, 40, 6, cols);
      Matrix expected = x;
      for (std::size_t i = 0; i < x.values.size(); ++i) expected.values[i] *= mask.values[i];
      Buffer y = poisoned(6, cols, 2, 1);
      backend_->dropout(p, id, 40, put(x, 1, 1).view, y.view, Write::overwrite);
      expect_close(expected, y, tolerance::kElementwise);
      const Matrix found = get(y);
      for (std::size_t i = 0; i < x.values.size(); ++i) ASSERT_EQ(found.values[i] == 0, mask.values[i] == 0);
      y = put(before, 2, 1);
      backend_->dropout(p, id, 40, put(x, 1, 1).view, y.view, Write::accumulate);
      expect_close(add(before, expected), y, tolerance::kElementwise);
    }
  }
}

TEST_P(Activations, DropoutOfAPartIsThePartOfTheDropout) {
  const StreamId id{.seed = 7, .purpose = Purpose::dropout, .client = 1, .round = 2, .step = 3};
  const Matrix x = random(8, 70);
  const Buffer in = put(x), whole = poisoned(8, 70), parts = poisoned(8, 70);
  backend_->dropout(0.3f, id, 0, in.view, whole.view, Write::overwrite);
  backend_->dropout(0.3f, id, 0, in.view.row_range(0, 3), parts.view.row_range(0, 3), Write::overwrite);
  backend_->dropout(0.3f, id, 3, in.view.row_range(3, 8), parts.view.row_range(3, 8), Write::overwrite);
  EXPECT_EQ(get(whole).values, get(parts).values);
}

}  // namespace
}  // namespace fedpdpo
