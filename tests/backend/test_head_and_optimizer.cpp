// Log-softmax of the head, AdamW, the inner product and the squared norm against the reference.
#include <array>

#include "fixture.hpp"

namespace fedpdpo {
namespace {

class HeadAndOptimizer : public OperationTest {};
FEDPDPO_ON_EVERY_BACKEND(HeadAndOptimizer);

TEST_P(HeadAndOptimizer, LogSoftmax) {
  for (const std::int64_t vocabulary : {1, 2, 5, 15, 16, 100, 512, 1025, 49153}) {
    const Matrix logits = random(5, vocabulary, 4);
    Indices targets = random_indices(5, vocabulary);
    targets[3] = targets[1];
    Matrix lse;
    const Matrix expected = reference::log_softmax(logits, targets, &lse);
    Buffer log_prob = poisoned(1, 5), out_lse = poisoned(1, 5);
    backend_->log_softmax(put(logits, 1, 2).view, put(targets).view, log_prob.view, out_lse.view);
    if (vocabulary > 1) {
      expect_close(expected, log_prob, tolerance::kLogProb);
    } else {
      EXPECT_EQ(get(log_prob).values, std::vector<double>(5, 0.0));
    }
    expect_close(lse, out_lse, tolerance::kLogProb);
    // Rows of whole packs that end within one.
    const Buffer packed = put(logits, 4, 8 - vocabulary % 4);
    out_lse = poisoned(1, 5);
    backend_->log_softmax(packed.view, put(targets).view, log_prob.view, out_lse.view);
    expect_close(lse, out_lse, tolerance::kLogProb);
    expect_guard(packed);
  }
}

TEST_P(HeadAndOptimizer, LogitsThatAreNotFiniteAreSeen) {
  for (const std::int64_t vocabulary : {3, 40, 5000}) {
    Matrix logits = random(4, vocabulary);
    logits(0, vocabulary - 1) = NAN;
    logits(1, vocabulary / 2) = INFINITY;
    // All but one: whole threads' columns among them.
    for (std::int64_t c = 0; c < vocabulary; ++c)
      if (c != 1) logits(2, c) = -INFINITY;
    logits(3, 0) = -INFINITY;
    const Indices targets = {0, 0, 1, 1};
    Buffer log_prob = poisoned(1, 4), lse = poisoned(1, 4);
    backend_->log_softmax(put(logits).view, put(targets).view, log_prob.view, lse.view);
    const Matrix found = get(log_prob), sums = get(lse);
    for (std::int64_t i = 0; i < 2; ++i) EXPECT_FALSE(std::isfinite(sums(0, i)) && std::isfinite(found(0, i))) << i;
    EXPECT_EQ(found(0, 2), 0);
    EXPECT_EQ(sums(0, 2), logits(2, 1));
    double sum = 0;
    for (std::int64_t c = 1; c < vocabulary; ++c) sum += std::exp(logits(3, c));
    EXPECT_NEAR(sums(0, 3), std::log(sum), 1e-6 * std::max(1.0, std::abs(std::log(sum))));
  }
}

TEST_P(HeadAndOptimizer, LogSoftmaxOfLargeLogits) {
  Matrix logits = random(3, 300, 50);
  for (double& v : logits.values) v = static_cast<float>(v + 1000);
  const Indices targets = {0, 5, 299};
  Matrix lse;
  const Matrix expected = reference::log_softmax(logits, targets, &lse);
  Buffer log_prob = poisoned(1, 3), out_lse = poisoned(1, 3);
  backend_->log_softmax(put(logits).view, put(targets).view, log_prob.view, out_lse.view);
  expect_close(expected, log_prob, tolerance::kLogProb);
  expect_close(lse, out_lse, tolerance::kLogProb);
}

TEST_P(HeadAndOptimizer, LogSoftmaxBackward) {
  for (const std::int64_t vocabulary : {2, 15, 33, 100}) {
    const Matrix logits = random(5, vocabulary, 3);
    Matrix coefficient = random(1, 5);
    coefficient(0, 2) = 0;
    const Indices targets = random_indices(5, vocabulary);
    const Matrix expected = reference::gradient(
        [&](const Matrix& at) { return dot(reference::log_softmax(at, targets), coefficient); }, logits);
    const Buffer in_place = put(logits, 1, 2), at = put(targets);
    Buffer log_prob = poisoned(1, 5), lse = poisoned(1, 5);
    backend_->log_softmax(in_place.view, at.view, log_prob.view, lse.view);
    backend_->log_softmax_backward(at.view, lse.view, put(coefficient).view, in_place.view, in_place.view);
    expect_close(expected, in_place, tolerance::kGradient);
    Buffer apart = poisoned(5, vocabulary, 2, 3);
    backend_->log_softmax_backward(at.view, lse.view, put(coefficient).view, put(logits, 3, 1).view, apart.view);
    expect_close(expected, apart, tolerance::kGradient);
  }
}

TEST_P(HeadAndOptimizer, AdamWFollowsTorch) {
  for (const std::int64_t n : {1, 16, 37, 5000, 70001}) {
    Matrix values = random(1, n), first(1, n), second(1, n);
    const Buffer p = put(values, 1, 1), m = put(first, 0, 2), v = put(second, 2, 0);
    for (std::int64_t step = 1; step <= 4; ++step) {
      const AdamW options{.learning_rate = 1e-2f, .weight_decay = 0.1f, .step = step, .gradient_scale = 0.5f};
      const Matrix gradients = random(1, n);
      reference::adamw(options, values, gradients, first, second);
      backend_->adamw(options, p.view, put(gradients, 1, 0).view, m.view, v.view);
    }
    expect_close(values, p, tolerance::kAdamW);
    expect_close(first, m, tolerance::kAdamW);
    expect_close(second, v, tolerance::kAdamW);
  }
}

TEST_P(HeadAndOptimizer, SpansOfAdamWAreSweepsOfTheirOwn) {
  // More than a launch takes, whole packs and not, empty ones among them.
  constexpr std::int64_t kSizes[] = {1, 16, 0, 37, 64, 4099};
  std::vector<Buffer> kept;
  std::vector<AdamWSpan> spans;
  std::vector<std::array<Buffer, 3>> expected;
  for (int i = 0; i < 40; ++i) {
    const std::int64_t n = kSizes[i % 6], left = i % 3;
    const Matrix p = random(1, n), g = random(1, n), m = random(1, n), v(1, n, 0.5);
    const AdamW options{.learning_rate = 1e-3f * static_cast<float>(i + 1),
                        .weight_decay = 0.01f,
                        .step = 1 + i,
                        .gradient_scale = 1.0f / static_cast<float>(i + 1)};
    std::array<Buffer, 3>& single = expected.emplace_back();
    single = {put(p), put(m), put(v)};
    backend_->adamw(options, single[0].view, put(g).view, single[1].view, single[2].view);
    for (const Matrix* part : {&p, &g, &m, &v}) kept.push_back(put(*part, left, 2));
    const std::size_t last = kept.size() - 4;
    spans.push_back({options, kept[last].view, kept[last + 1].view, kept[last + 2].view, kept[last + 3].view});
  }
  backend_->adamw_spans(spans);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expect_close(get(expected[i][0]), kept[4 * i], tolerance::kExact);
    expect_close(get(expected[i][1]), kept[4 * i + 2], tolerance::kExact);
    expect_close(get(expected[i][2]), kept[4 * i + 3], tolerance::kExact);
  }
  backend_->adamw_spans({});
}

TEST_P(HeadAndOptimizer, SquaredNormsAreSquaredNorms) {
  std::vector<Buffer> kept;
  std::vector<ConstView> views;
  for (int i = 0; i < 110; ++i) {
    kept.push_back(put(random(1, i % 7 == 3 ? 0 : 1 + 131 * (i % 40)), i % 3, 1));
    views.push_back(kept.back().view);
  }
  std::vector<double> norms(views.size(), -1);
  backend_->squared_norms(views, norms);
  for (std::size_t i = 0; i < views.size(); ++i) EXPECT_EQ(norms[i], backend_->squared_norm(views[i])) << i;
  backend_->squared_norms({}, {});
}

TEST_P(HeadAndOptimizer, Dot) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {1, 17}, {3, 50}, {1, 100003}, {5, 4097}}) {
    const Matrix x = random(rows, cols), y = random(rows, cols);
    const double expected = dot(x, y), scale = std::sqrt(dot(x, x) * dot(y, y));
    const Buffer flat = put(x), strided = put(x, 1, 3);
    EXPECT_NEAR((backend_->dot(flat.view, put(y).view) - expected) / scale, 0, tolerance::kSquaredNorm);
    EXPECT_NEAR((backend_->dot(strided.view, put(y).view) - expected) / scale, 0, tolerance::kSquaredNorm);
    EXPECT_NEAR((backend_->dot(flat.view, put(y, 2).view) - expected) / scale, 0, tolerance::kSquaredNorm);
    EXPECT_EQ(backend_->dot(strided.view, strided.view), backend_->squared_norm(strided.view));
  }
  EXPECT_EQ(backend_->dot({}, {}), 0);
}

TEST_P(HeadAndOptimizer, ProductsOfADotAreExact) {
  for (const double value : {0x1p100, -0x1p-100, 1 + 0x1p-23}) {
    const Matrix x(1, 1, value);
    EXPECT_EQ(backend_->dot(put(x).view, put(x).view), value * value);
    EXPECT_EQ(backend_->dot(put(x).view, put(Matrix(1, 1, 1 + 0x1p-20)).view), value * (1 + 0x1p-20));
  }
}

TEST_P(HeadAndOptimizer, SquaredNorm) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {1, 17}, {3, 50}, {1, 100003}, {5, 4097}}) {
    const Matrix x = random(rows, cols);
    EXPECT_NEAR(backend_->squared_norm(put(x).view) / dot(x, x), 1, tolerance::kSquaredNorm);
    EXPECT_NEAR(backend_->squared_norm(put(x, 1, 3).view) / dot(x, x), 1, tolerance::kSquaredNorm);
  }
  EXPECT_EQ(backend_->squared_norm({}), 0);
}

}  // namespace
}  // namespace fedpdpo
