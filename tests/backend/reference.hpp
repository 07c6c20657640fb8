// Every operation's forward in double precision by plain loops: what the backends are compared with. Gradients come
// from central differences of these forwards, never from a second copy of a backward formula.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo::reference {

struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(std::int64_t num_rows, std::int64_t num_cols, double value = 0)
      : rows(num_rows), cols(num_cols), values(static_cast<std::size_t>(num_rows * num_cols), value) {}
  double& operator()(std::int64_t i, std::int64_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  double operator()(std::int64_t i, std::int64_t j) const { return values[static_cast<std::size_t>(i * cols + j)]; }
};

using Indices = std::vector<std::int32_t>;

Matrix add(const Matrix& a, const Matrix& b);
Matrix scale(double factor, const Matrix& a);
double dot(const Matrix& a, const Matrix& b);
Matrix scale_rows(const Matrix& weights, const Matrix& x);

/// Gradient of f at x by central differences.
Matrix gradient(const std::function<double(const Matrix&)>& f, Matrix x);

Matrix embed(const Indices& tokens, const Indices& positions, const Matrix& table, const Matrix& position_table);
Matrix rms_norm(const Matrix& x, const Matrix& w, double eps);
/// rms_norm of each head's columns by its own part of w.
Matrix head_norm(const Matrix& x, const Matrix& w, std::int64_t head_dim, double eps);
Matrix layer_norm(const Matrix& x, const Matrix& w, const Matrix& b, double eps);
Matrix gather(const Matrix& x, const Indices& rows);
/// x w^T (+ bias where it has columns).
Matrix linear(const Matrix& x, const Matrix& w, const Matrix& bias);
Matrix multiply(const Matrix& a, const Matrix& b);
Matrix transposed(const Matrix& a);
Matrix rotate(const Indices& positions, const Matrix& cos, const Matrix& sin, int head_dim, const Matrix& x);
Matrix attention(const AttentionPlan& plan, const AttentionShape& shape, const Matrix& qkv, Matrix* lse = nullptr);
double activate(Activation kind, double x);
Matrix activation(Activation kind, const Matrix& x);
Matrix gated_activation(Activation kind, const Matrix& x);
Matrix gate(const Matrix& h, const Matrix& a, const Matrix& g);
/// Factors 0 or 1 / (1 - p), from the scalar Philox.
Matrix dropout_mask(double p, const StreamId& id, std::int64_t first_row, std::int64_t rows, std::int64_t cols);
/// (1, R) log-probs of the targets.
Matrix log_softmax(const Matrix& logits, const Indices& targets, Matrix* lse = nullptr);
void adamw(const AdamW& options, Matrix& values, const Matrix& gradients, Matrix& first, Matrix& second);

}  // namespace fedpdpo::reference
