// Tests of operations on bf16 activations, on the backends that take them: views inside of wider, NaN-filled bf16
// buffers.
#pragma once

#include "fixture.hpp"

namespace fedpdpo {

using Bits = std::vector<std::uint16_t>;

class Bf16Test : public OperationTest {
 protected:
  void SetUp() override {
    OperationTest::SetUp();
    if (backend_ && !backend_->supports_bf16_activations()) GTEST_SKIP() << "takes activations in f32 only";
  }

  /// A bf16 view between columns of NaN, where it begins at any or only at whole 16 bytes.
  struct Half {
    Tensor tensor;
    View view;
    std::int64_t left = 0;
  };
  enum class Place { aligned, odd };
  Half poisoned_half(std::int64_t rows, std::int64_t cols, Place place) {
    const std::int64_t left = place == Place::aligned ? 8 : 3, right = place == Place::aligned ? 8 - cols % 8 : 2;
    Half half{Tensor(*backend_, rows, left + cols + right, DType::bf16), {}, left};
    half.view = half.tensor.view().columns(left, left + cols);
    const Bits nan(static_cast<std::size_t>(half.tensor.rows() * half.tensor.cols()), 0x7fc0);
    backend_->copy_to_device(half.tensor.view().data, nan.data(), nan.size() * 2);
    return half;
  }
  Half put_half(const Matrix& m, Place place) {
    Half half = poisoned_half(m.rows, m.cols, place);
    Bits host = all_bits(half);
    for (std::int64_t i = 0; i < m.rows; ++i)
      for (std::int64_t j = 0; j < m.cols; ++j)
        host[static_cast<std::size_t>(i * half.tensor.cols() + half.left + j)] = bf16_bits(static_cast<float>(m(i, j)));
    backend_->copy_to_device(half.tensor.view().data, host.data(), host.size() * 2);
    return half;
  }
  Bits all_bits(const Half& half) {
    Bits host(static_cast<std::size_t>(half.tensor.rows() * half.tensor.cols()));
    backend_->copy_to_host(host.data(), half.tensor.view().data, host.size() * 2);
    return host;
  }
  /// The view's elements; what lies around it is as it was.
  Bits bits(const Half& half) {
    const Bits host = all_bits(half);
    Bits inside;
    for (std::size_t i = 0; i < host.size(); ++i) {
      const std::int64_t column = static_cast<std::int64_t>(i) % half.tensor.cols() - half.left;
      if (column >= 0 && column < half.view.cols) {
        inside.push_back(host[i]);
      } else if (host[i] != 0x7fc0) {
        ADD_FAILURE() << "written outside of the view, element " << i;
      }
    }
    return inside;
  }
  Matrix values(const Half& half) {
    const Bits inside = bits(half);
    Matrix m(half.view.rows, half.view.cols);
    for (std::size_t i = 0; i < inside.size(); ++i) m.values[i] = bf16_value(inside[i]);
    return m;
  }
};

}  // namespace fedpdpo
