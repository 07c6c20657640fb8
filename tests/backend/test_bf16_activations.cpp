// Norms, sums, linear maps, rotary embedding, activations, dropout and small per-client products on bf16 activations,
// against the double reference of the same rounded inputs; a bf16 output is that number, rounded.
#include "bf16_fixture.hpp"

namespace fedpdpo {
namespace {

class Bf16Activations : public Bf16Test {
 protected:
  Matrix random_half(std::int64_t rows, std::int64_t cols, double spread = 1) {
    return rounded_to_bf16(random(rows, cols, spread));
  }
  void expect_half(const Matrix& expected, const Half& found) {
    expect_close(expected, values(found), tolerance::kBf16Output);
  }
  /// cols of packs and not, at aligned and odd places.
  struct Shape {
    std::int64_t rows, cols;
    Place place;
  };
  static constexpr Shape kShapes[] = {{3, 64, Place::aligned}, {5, 576, Place::aligned}, {4, 36, Place::odd},
                                      {2, 7, Place::odd},      {3, 130, Place::aligned}, {1, 1, Place::odd}};
};
FEDPDPO_ON_EVERY_BACKEND(Bf16Activations);

TEST_P(Bf16Activations, CopiesRoundToTheNearest) {
  for (const auto [rows, cols, place] : kShapes) {
    const Matrix x = random(rows, cols), half = random_half(rows, cols);
    Half y = poisoned_half(rows, cols, place);
    backend_->copy(put(x, 4, 4).view, y.view);
    expect_close(rounded_to_bf16(x), values(y), tolerance::kExact);
    Buffer wide = poisoned(rows, cols, 4, 4);
    backend_->copy(put_half(half, place).view, wide.view);
    expect_close(half, wide, tolerance::kExact);
  }
}

TEST_P(Bf16Activations, Norms) {
  for (const auto [rows, cols, place] : kShapes) {
    const Matrix x = random(rows, cols), w = random(1, cols), b = random(1, cols);
    Half y = poisoned_half(rows, cols, place);
    backend_->rms_norm(put(x, 4, 4).view, put(w).view, 1e-2f, y.view);
    expect_half(reference::rms_norm(x, w, 1e-2f), y);
    y = poisoned_half(rows, cols, place);
    backend_->layer_norm(put(x, 4, 4).view, put(w).view, put(b).view, 1e-2f, y.view);
    expect_half(reference::layer_norm(x, w, b, 1e-2f), y);
  }
}

TEST_P(Bf16Activations, NormGradients) {
  for (const auto& [rows, cols, place] : {Shape{2, 7, Place::odd}, {3, 16, Place::aligned}}) {
    const Matrix x = random(rows, cols), w = random(1, cols), b(1, cols), d_y = random_half(rows, cols);
    const Matrix before = random(rows, cols);
    const Half gradient = put_half(d_y, place);
    const Matrix rms =
        reference::gradient([&](const Matrix& at) { return dot(reference::rms_norm(at, w, 1e-2f), d_y); }, x);
    Buffer d_x = put(before, 4, 4);
    backend_->rms_norm_backward(put(x, 4, 4).view, put(w).view, 1e-2f, gradient.view, d_x.view, Write::accumulate);
    expect_close(add(before, rms), d_x, tolerance::kGradient);
    const Matrix layer =
        reference::gradient([&](const Matrix& at) { return dot(reference::layer_norm(at, w, b, 1e-2f), d_y); }, x);
    d_x = poisoned(rows, cols, 4, 4);
    backend_->layer_norm_backward(put(x, 4, 4).view, put(w).view, 1e-2f, gradient.view, d_x.view, Write::overwrite);
    expect_close(layer, d_x, tolerance::kGradient);
  }
}

TEST_P(Bf16Activations, ResidualNormGradients) {
  for (const auto& [rows, cols, place] : {Shape{2, 7, Place::odd}, {3, 16, Place::aligned}, {2, 132, Place::aligned}}) {
    const Matrix sum = random(rows, cols), w = random(1, cols), d_y = random_half(rows, cols);
    const Matrix before = random(rows, cols);
    const Matrix expected =
        add(before,
            reference::gradient([&](const Matrix& at) { return dot(reference::rms_norm(at, w, 1e-2f), d_y); }, sum));
    const Buffer d_sum = put(before, 4, 4);
    const Half gradient = put_half(d_y, place);
    Half d_delta = poisoned_half(rows, cols, place), y = poisoned_half(rows, cols, place);
    backend_->residual_rms_norm_backward(put(sum, 4, 4).view, put(w).view, 1e-2f, gradient.view, d_sum.view,
                                         d_delta.view, y.view);
    expect_close(expected, d_sum, tolerance::kGradient);
    expect_close(rounded_to_bf16(get(d_sum)), values(d_delta), tolerance::kExact);
    expect_half(reference::rms_norm(sum, w, 1e-2f), y);
  }
}

TEST_P(Bf16Activations, GradientsOfLogitsLieOverThem) {
  // Rows of packs and not, fewer and more than a block takes at once; the second half of each row is nobody's.
  for (const auto& [vocabulary, left] :
       {std::pair{2, 0}, {1, 4}, {33, 3}, {33, 4}, {4097, 1}, {4097, 4}, {4098, 0}, {5000, 4}}) {
    const Matrix logits = random(3, vocabulary, 3);
    Matrix coefficient = random(1, 3);
    coefficient(0, 1) = 0;
    const Buffer targets = put(random_indices(3, vocabulary));
    // With a left of whole packs, rows of whole packs that end within one.
    const std::int64_t right = left % 4 == 0 ? 8 - vocabulary % 4 : 4;
    const Buffer in = put(logits, left, right), apart = poisoned(3, vocabulary, left, right);
    Buffer log_prob = poisoned(1, 3), lse = poisoned(1, 3);
    backend_->log_softmax(in.view, targets.view, log_prob.view, lse.view);
    backend_->log_softmax_backward(targets.view, lse.view, put(coefficient).view, in.view, apart.view);
    const View half = half_rows(in.view);
    backend_->log_softmax_backward(targets.view, lse.view, put(coefficient).view, in.view, half);
    Buffer found = poisoned(3, vocabulary);
    backend_->copy(half, found.view);
    expect_close(rounded_to_bf16(get(apart)), found, tolerance::kExact);
  }
}

TEST_P(Bf16Activations, HeadNorms) {
  for (const auto& [rows, heads, head_dim, place] :
       {std::tuple{3, 4, 16, Place::aligned}, {2, 3, 7, Place::odd}, {2, 2, 8, Place::odd}}) {
    const int cols = heads * head_dim;
    const Matrix x = random_half(rows, cols), w = random(1, cols), d_y = random_half(rows, cols);
    Half y = put_half(x, place);
    backend_->head_norm(y.view, put(w).view, head_dim, 1e-2f, y.view);
    expect_half(reference::head_norm(x, w, head_dim, 1e-2f), y);
    const std::int64_t dim = head_dim;
    const Matrix expected =
        reference::gradient([&](const Matrix& at) { return dot(reference::head_norm(at, w, dim, 1e-2f), d_y); }, x);
    Half d_x = put_half(d_y, place);
    backend_->head_norm_backward(put_half(x, place).view, put(w).view, head_dim, 1e-2f, d_x.view, d_x.view);
    expect_half(expected, d_x);
  }
}

TEST_P(Bf16Activations, SumsWithTheStream) {
  for (const auto [rows, cols, place] : kShapes) {
    const Matrix x = random(rows, cols), delta = random_half(rows, cols), w = random(1, cols);
    const Buffer sum = put(x, 4, 4);
    const Half term = put_half(delta, place);
    Buffer apart = poisoned(rows, cols, 4, 4);
    backend_->add(sum.view, term.view, apart.view);
    expect_close(add(x, delta), apart, tolerance::kElementwise);
    Half y = poisoned_half(rows, cols, place);
    backend_->residual_rms_norm(sum.view, term.view, put(w).view, 1e-2f, sum.view, y.view);
    expect_close(add(x, delta), sum, tolerance::kElementwise);
    expect_half(reference::rms_norm(add(x, delta), w, 1e-2f), y);
  }
}

TEST_P(Bf16Activations, LinearMapsOnBf16Weights) {
  for (const auto& [rows, in, out, place] :
       {std::tuple{5, 64, 48, Place::aligned}, {3, 33, 17, Place::odd}, {40, 16, 24, Place::aligned}}) {
    const Matrix x = random_half(rows, in), w = random_half(out, in), d_y = random_half(rows, out);
    const Matrix bias = random(1, out), before = random_half(rows, out);
    const Buffer weights = put_bf16(w);
    Half y = poisoned_half(rows, out, place);
    backend_->linear(put_half(x, place).view, weights.view, put(bias).view, y.view, Write::overwrite);
    // Rounded as a product, and again with the bias.
    expect_close(reference::linear(x, w, bias), values(y), 2 * tolerance::kBf16Output);
    y = put_half(before, place);
    backend_->linear(put_half(x, place).view, weights.view, {}, y.view, Write::accumulate);
    expect_half(add(before, reference::linear(x, w, {})), y);
    Buffer wide = poisoned(rows, out, 1, 2);
    backend_->linear(put_half(x, place).view, weights.view, {}, wide.view, Write::overwrite);
    expect_close(reference::linear(x, w, {}), wide, tolerance::kProductBf16Rounded);
    Half d_x = poisoned_half(rows, in, place);
    backend_->linear_backward(put_half(d_y, place).view, weights.view, d_x.view, Write::overwrite);
    expect_half(multiply(d_y, w), d_x);
    d_x = poisoned_half(rows, in, place);
    backend_->linear_backward(put(d_y, 2, 1).view, weights.view, d_x.view, Write::overwrite);
    expect_half(multiply(d_y, w), d_x);
  }
}

TEST_P(Bf16Activations, AddingToZerosGivesTheBitsOfTheProductAlone) {
  // So that a policy whose LoRA is still zero is its reference, which has none.
  for (const auto& [rows, in, out] : {std::tuple{5, 64, 48}, {3, 33, 17}, {70, 160, 136}}) {
    const Half x = put_half(random_half(rows, in), Place::aligned),
               d_y = put_half(random_half(rows, out), Place::aligned);
    const Buffer weights = put_bf16(random_half(out, in)), bias = put(random(1, out));
    for (const bool biased : {false, true}) {
      const ConstView b = biased ? ConstView(bias.view) : ConstView{};
      const Half alone = poisoned_half(rows, out, Place::aligned), added = put_half(Matrix(rows, out), Place::aligned);
      backend_->linear(x.view, weights.view, b, alone.view, Write::overwrite);
      backend_->linear(x.view, weights.view, b, added.view, Write::accumulate);
      EXPECT_EQ(values(alone).values, values(added).values) << rows << " rows, " << in << " to " << out;
    }
    const Half alone = poisoned_half(rows, in, Place::aligned), added = put_half(Matrix(rows, in), Place::aligned);
    backend_->linear_backward(d_y.view, weights.view, alone.view, Write::overwrite);
    backend_->linear_backward(d_y.view, weights.view, added.view, Write::accumulate);
    EXPECT_EQ(values(alone).values, values(added).values) << rows << " rows, " << out << " to " << in;
    const Matrix before = random_half(rows, in), gradient = values(d_y);
    const Half sum = put_half(before, Place::aligned);
    backend_->linear_backward(d_y.view, weights.view, sum.view, Write::accumulate);
    expect_close(add(before, values(alone)), values(sum), 2 * tolerance::kBf16Output);
  }
}

TEST_P(Bf16Activations, Rotation) {
  for (const auto& [head_dim, half, place] : {std::tuple{16, 8, Place::aligned}, {10, 3, Place::odd}}) {
    const Matrix cos = random(7, half), sin = random(7, half), x = random_half(5, 3 * head_dim);
    const Indices positions = random_indices(5, 7);
    const Half y = put_half(x, place);
    backend_->rotate(put(positions).view, put(cos).view, put(sin).view, head_dim, Rotation::forward, y.view);
    expect_half(reference::rotate(positions, cos, sin, head_dim, x), y);
  }
}

TEST_P(Bf16Activations, ActivationsAndTheirGradients) {
  for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf})
    for (const auto& [cols, place] : {std::pair{24, Place::aligned}, {7, Place::odd}}) {
      const Matrix x = random_half(4, cols, 2), d_y = random_half(4, cols);
      Half y = poisoned_half(4, cols, place);
      backend_->activation(kind, put_half(x, place).view, y.view);
      expect_half(reference::activation(kind, x), y);
      const Half in_place = put_half(d_y, place);
      Half again = poisoned_half(4, cols, place);
      backend_->activation_backward(kind, put_half(x, place).view, in_place.view, in_place.view, again.view);
      expect_half(reference::activation(kind, x), again);
      expect_half(reference::gradient([&](const Matrix& at) { return dot(reference::activation(kind, at), d_y); }, x),
                  in_place);
      const Matrix both = random_half(4, 2 * cols, 2);
      y = poisoned_half(4, cols, place);
      backend_->gated_activation(kind, put_half(both, place).view, y.view);
      expect_half(reference::gated_activation(kind, both), y);
      Half d_x = put_half(both, place);
      again = put_half(d_y, place);
      backend_->gated_activation_backward(kind, d_x.view, again.view, d_x.view, again.view);
      expect_half(reference::gated_activation(kind, both), again);
      expect_half(
          reference::gradient([&](const Matrix& at) { return dot(reference::gated_activation(kind, at), d_y); }, both),
          d_x);
    }
}

TEST_P(Bf16Activations, DropoutDrawsTheSameMask) {
  const StreamId id{.seed = 3, .purpose = Purpose::test, .client = 4, .round = 2, .step = 9};
  for (const auto& [cols, place] : {std::pair{24, Place::aligned}, {7, Place::odd}}) {
    const Matrix x = random_half(4, cols), before = random_half(4, cols);
    Matrix expected = reference::dropout_mask(0.25f, id, 11, 4, cols);
    for (std::size_t i = 0; i < expected.values.size(); ++i) expected.values[i] *= x.values[i];
    Half y = poisoned_half(4, cols, place);
    backend_->dropout(0.25f, id, 11, put_half(x, place).view, y.view, Write::overwrite);
    expect_half(expected, y);
    y = put_half(before, place);
    backend_->dropout(0.25f, id, 11, put_half(x, place).view, y.view, Write::accumulate);
    expect_half(add(before, expected), y);
  }
}

}  // namespace
}  // namespace fedpdpo
