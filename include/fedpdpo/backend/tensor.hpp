// Tensor owns memory of a backend, View does not. Everything is a matrix of rows with a stride; a vector is one row.
// Shape letters used throughout: T rows (tokens) of a packed batch, R targets, d hidden size, V vocabulary, r LoRA
// rank, m bottleneck width, C members of a cohort.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fedpdpo {

enum class DType : std::uint8_t { f32, bf16, i32, i64 };

constexpr std::size_t dtype_size(DType dtype) { return dtype == DType::bf16 ? 2 : dtype == DType::i64 ? 8 : 4; }
const char* dtype_name(DType dtype);

/// A matrix (rows, cols) with `stride` elements from row to row, in the memory of some backend.
struct ConstView {
  const void* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;
  DType dtype = DType::f32;

  const float* f32() const { return static_cast<const float*>(data); }
  const std::int32_t* i32() const { return static_cast<const std::int32_t*>(data); }
  const std::int64_t* i64() const { return static_cast<const std::int64_t*>(data); }
  std::int64_t size() const { return rows * cols; }
  bool contiguous() const { return stride == cols || rows <= 1; }
  ConstView row_range(std::int64_t begin, std::int64_t end) const;
  ConstView columns(std::int64_t begin, std::int64_t end) const;
};

struct View {
  void* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;
  DType dtype = DType::f32;

  float* f32() const { return static_cast<float*>(data); }
  std::int32_t* i32() const { return static_cast<std::int32_t*>(data); }
  std::int64_t* i64() const { return static_cast<std::int64_t*>(data); }
  std::int64_t size() const { return rows * cols; }
  bool contiguous() const { return stride == cols || rows <= 1; }
  View row_range(std::int64_t begin, std::int64_t end) const;
  View columns(std::int64_t begin, std::int64_t end) const;
  operator ConstView() const { return {data, rows, cols, stride, dtype}; }
};

inline ConstView view_of(const float* data, std::int64_t rows, std::int64_t cols) {
  return {data, rows, cols, cols, DType::f32};
}
inline View view_of(float* data, std::int64_t rows, std::int64_t cols) { return {data, rows, cols, cols, DType::f32}; }

/// A bf16 matrix over an f32 one of the same shape: every row over the first half of its row.
inline View half_rows(View x) { return {x.data, x.rows, x.cols, 2 * x.stride, DType::bf16}; }

class Backend;

/// A contiguous matrix that it owns, 64-byte aligned.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Backend& backend, std::int64_t rows, std::int64_t cols, DType dtype = DType::f32);

  View view() const { return {data_.get(), rows_, cols_, cols_, dtype_}; }
  /// The first `rows` rows: buffers are planned for the largest batch and used in part.
  View first(std::int64_t rows) const;
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::size_t bytes() const { return static_cast<std::size_t>(rows_ * cols_) * dtype_size(dtype_); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::shared_ptr<void> data_;
  std::int64_t rows_ = 0, cols_ = 0;
  DType dtype_ = DType::f32;
};

}  // namespace fedpdpo
