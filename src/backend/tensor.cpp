// Views cut out of a matrix, and the Tensor that owns one.
#include "fedpdpo/backend/tensor.hpp"

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

template <class AnyView>
AnyView cut(const AnyView& view, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
  check(row >= 0 && rows >= 0 && row + rows <= view.rows, "view: row range outside of the matrix");
  check(col >= 0 && cols >= 0 && col + cols <= view.cols, "view: column range outside of the matrix");
  AnyView part = view;
  part.rows = rows;
  part.cols = cols;
  if (view.data != nullptr) {
    const std::int64_t offset = (row * view.stride + col) * static_cast<std::int64_t>(dtype_size(view.dtype));
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char, char>;
    part.data = static_cast<Byte*>(view.data) + offset;
  }
  return part;
}

}  // namespace

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
  }
  return "unknown";
}

ConstView ConstView::row_range(std::int64_t begin, std::int64_t end) const {
  return cut(*this, begin, end - begin, 0, cols);
}
ConstView ConstView::columns(std::int64_t begin, std::int64_t end) const {
  return cut(*this, 0, rows, begin, end - begin);
}
View View::row_range(std::int64_t begin, std::int64_t end) const { return cut(*this, begin, end - begin, 0, cols); }
View View::columns(std::int64_t begin, std::int64_t end) const { return cut(*this, 0, rows, begin, end - begin); }

Tensor::Tensor(Backend& backend, std::int64_t rows, std::int64_t cols, DType dtype)
    : rows_(rows), cols_(cols), dtype_(dtype) {
  check(rows >= 0 && cols >= 0, "tensor: negative size");
  data_ = backend.allocate(static_cast<std::size_t>(rows * cols) * dtype_size(dtype));
}

View Tensor::first(std::int64_t rows) const {
  check(rows >= 0 && rows <= rows_, "tensor: more rows than planned");
  View part = view();
  part.rows = rows;
  return part;
}

}  // namespace fedpdpo
