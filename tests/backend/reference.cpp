// Plain double implementations; see reference.hpp.
#include "reference.hpp"

#include <algorithm>
#include <cmath>

namespace fedpdpo::reference {

Matrix add(const Matrix& a, const Matrix& b) {
  Matrix c = a;
  for (std::size_t i = 0; i < c.values.size(); ++i) c.values[i] += b.values[i];
  return c;
}

Matrix scale(double factor, const Matrix& a) {
  Matrix c = a;
  for (double& value : c.values) value *= factor;
  return c;
}

double dot(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) sum += a.values[i] * b.values[i];
  return sum;
}

Matrix scale_rows(const Matrix& weights, const Matrix& x) {
  Matrix y = x;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t c = 0; c < x.cols; ++c) y(t, c) *= weights(0, t);
  }
  return y;
}

Matrix gradient(const std::function<double(const Matrix&)>& f, Matrix x) {
  Matrix result(x.rows, x.cols);
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const double at = x.values[i], step = 1e-5 * std::max(1.0, std::abs(at));
    x.values[i] = at + step;
    const double above = f(x);
    x.values[i] = at - step;
    const double below = f(x);
    x.values[i] = at;
    result.values[i] = (above - below) / (2 * step);
  }
  return result;
}

Matrix embed(const Indices& tokens, const Indices& positions, const Matrix& table, const Matrix& position_table) {
  Matrix y(static_cast<std::int64_t>(tokens.size()), table.cols);
  for (std::int64_t t = 0; t < y.rows; ++t) {
    for (std::int64_t c = 0; c < y.cols; ++c) {
      y(t, c) = table(tokens[t], c) + (position_table.rows > 0 ? position_table(positions[t], c) : 0.0);
    }
  }
  return y;
}

Matrix rms_norm(const Matrix& x, const Matrix& w, double eps) {
  Matrix y(x.rows, x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (std::int64_t c = 0; c < x.cols; ++c) squares += x(t, c) * x(t, c);
    const double s = 1 / std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (std::int64_t c = 0; c < x.cols; ++c) y(t, c) = x(t, c) * s * w(0, c);
  }
  return y;
}

Matrix head_norm(const Matrix& x, const Matrix& w, std::int64_t head_dim, double eps) {
  Matrix y(x.rows, x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (std::int64_t c = 0; c < x.cols; ++c) {
      const std::int64_t first = c / head_dim * head_dim;
      double squares = 0;
      for (std::int64_t k = first; k < first + head_dim; ++k) squares += x(t, k) * x(t, k);
      y(t, c) = x(t, c) / std::sqrt(squares / static_cast<double>(head_dim) + eps) * w(0, c);
    }
  return y;
}

Matrix layer_norm(const Matrix& x, const Matrix& w, const Matrix& b, double eps) {
  Matrix y(x.rows, x.cols);
  const auto n = static_cast<double>(x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double mean = 0, variance = 0;
    for (std::int64_t c = 0; c < x.cols; ++c) mean += x(t, c) / n;
    for (std::int64_t c = 0; c < x.cols; ++c) variance += (x(t, c) - mean) * (x(t, c) - mean) / n;
    const double s = 1 / std::sqrt(variance + eps);
    for (std::int64_t c = 0; c < x.cols; ++c) y(t, c) = (x(t, c) - mean) * s * w(0, c) + b(0, c);
  }
  return y;
}

Matrix gather(const Matrix& x, const Indices& rows) {
  Matrix y(static_cast<std::int64_t>(rows.size()), x.cols);
  for (std::int64_t i = 0; i < y.rows; ++i) {
    for (std::int64_t c = 0; c < x.cols; ++c) y(i, c) = x(rows[i], c);
  }
  return y;
}

Matrix multiply(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t j = 0; j < b.cols; ++j) c(i, j) += a(i, k) * b(k, j);
    }
  }
  return c;
}

Matrix transposed(const Matrix& a) {
  Matrix b(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) b(j, i) = a(i, j);
  }
  return b;
}

Matrix linear(const Matrix& x, const Matrix& w, const Matrix& bias) {
  Matrix y = multiply(x, transposed(w));
  if (bias.cols > 0) {
    for (std::int64_t t = 0; t < y.rows; ++t) {
      for (std::int64_t c = 0; c < y.cols; ++c) y(t, c) += bias(0, c);
    }
  }
  return y;
}

Matrix rotate(const Indices& positions, const Matrix& cos, const Matrix& sin, int head_dim, const Matrix& x) {
  Matrix y = x;
  const std::int64_t half = cos.cols;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t head = 0; head < x.cols; head += head_dim) {
      for (std::int64_t j = 0; j < half; ++j) {
        const double c = cos(positions[t], j), s = sin(positions[t], j);
        const double x1 = x(t, head + j), x2 = x(t, head + half + j);
        y(t, head + j) = x1 * c - x2 * s;
        y(t, head + half + j) = x2 * c + x1 * s;
      }
    }
  }
  return y;
}

Matrix attention(const AttentionPlan& plan, const AttentionShape& shape, const Matrix& qkv, Matrix* lse) {
  const std::int64_t hd = shape.head_dim, shared = shape.num_heads / shape.num_kv_heads;
  Matrix out(qkv.rows, shape.num_heads * hd);
  if (lse != nullptr) *lse = Matrix(qkv.rows, shape.num_heads);
  for (const Segment& segment : plan.segments) {
    for (std::int64_t row = segment.begin; row < segment.end; ++row) {
      std::vector<std::int64_t> keys;
      for (std::int64_t k = segment.context_begin; k < segment.context_end; ++k) keys.push_back(k);
      for (std::int64_t k = segment.begin; k <= row; ++k) keys.push_back(k);
      for (std::int64_t h = 0; h < shape.num_heads; ++h) {
        const std::int64_t k_at = (shape.num_heads + h / shared) * hd, v_at = k_at + shape.num_kv_heads * hd;
        double sum = 0;
        std::vector<double> weights;
        for (const std::int64_t key : keys) {
          double score = 0;
          for (std::int64_t c = 0; c < hd; ++c) score += qkv(row, h * hd + c) * qkv(key, k_at + c);
          weights.push_back(std::exp(score * static_cast<double>(shape.scale)));
          sum += weights.back();
        }
        for (std::size_t i = 0; i < keys.size(); ++i) {
          for (std::int64_t c = 0; c < hd; ++c) out(row, h * hd + c) += weights[i] / sum * qkv(keys[i], v_at + c);
        }
        if (lse != nullptr) (*lse)(row, h) = std::log(sum);
      }
    }
  }
  return out;
}

double activate(Activation kind, double x) {
  switch (kind) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  }
  return 0;
}

Matrix activation(Activation kind, const Matrix& x) {
  Matrix y = x;
  for (double& value : y.values) value = activate(kind, value);
  return y;
}

Matrix gated_activation(Activation kind, const Matrix& x) {
  const std::int64_t n = x.cols / 2;
  Matrix y(x.rows, n);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t c = 0; c < n; ++c) y(t, c) = activate(kind, x(t, c)) * x(t, n + c);
  }
  return y;
}

Matrix gate(const Matrix& h, const Matrix& a, const Matrix& g) {
  Matrix z(h.rows, h.cols);
  for (std::int64_t t = 0; t < h.rows; ++t) {
    for (std::int64_t c = 0; c < h.cols; ++c) z(t, c) = (1 - g(0, c)) * h(t, c) + g(0, c) * a(t, c);
  }
  return z;
}

Matrix dropout_mask(double p, const StreamId& id, std::int64_t first_row, std::int64_t rows, std::int64_t cols) {
  Matrix mask(rows, cols);
  const PhiloxKey key = philox_key(id.seed, id.purpose);
  for (std::int64_t t = 0; t < rows; ++t) {
    for (std::int64_t c = 0; c < cols; ++c) {
      const PhiloxCounter drawn =
          philox4x32({static_cast<std::uint32_t>(c / 4), static_cast<std::uint32_t>(first_row + t), id.step,
                      id.client ^ (id.round << 16)},
                     key);
      const double word = drawn[static_cast<std::size_t>(c % 4)];
      mask(t, c) = word >= p * 4294967296.0 ? 1 / (1 - p) : 0;
    }
  }
  return mask;
}

Matrix log_softmax(const Matrix& logits, const Indices& targets, Matrix* lse) {
  Matrix log_prob(1, logits.rows);
  if (lse != nullptr) *lse = Matrix(1, logits.rows);
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    double maximum = logits(i, 0), sum = 0;
    for (std::int64_t v = 0; v < logits.cols; ++v) maximum = std::max(maximum, logits(i, v));
    for (std::int64_t v = 0; v < logits.cols; ++v) sum += std::exp(logits(i, v) - maximum);
    log_prob(0, i) = logits(i, targets[i]) - maximum - std::log(sum);
    if (lse != nullptr) (*lse)(0, i) = maximum + std::log(sum);
  }
  return log_prob;
}

void adamw(const AdamW& o, Matrix& values, const Matrix& gradients, Matrix& first, Matrix& second) {
  const double beta1 = o.beta1, beta2 = o.beta2, rate = o.learning_rate, step = static_cast<double>(o.step);
  for (std::size_t i = 0; i < values.values.size(); ++i) {
    const double g = gradients.values[i] * o.gradient_scale;
    first.values[i] = beta1 * first.values[i] + (1 - beta1) * g;
    second.values[i] = beta2 * second.values[i] + (1 - beta2) * g * g;
    const double m = first.values[i] / (1 - std::pow(beta1, step));
    const double v = second.values[i] / (1 - std::pow(beta2, step));
    values.values[i] -= rate * o.weight_decay * values.values[i] + rate * m / (std::sqrt(v) + o.epsilon);
  }
}

}  // namespace fedpdpo::reference
