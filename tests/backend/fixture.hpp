// Tests of operations run on every backend of `backend_cases()`: a test uploads double matrices, whose values are exact
// in fp32, into views inside of wider, NaN-filled buffers, and compares with the reference. NaN shows what an operation
// reads outside of its views or leaves unwritten; `expect_guard` shows what it writes outside.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <ostream>
#include <source_location>
#include <string>
#include <vector>

#include "differences.hpp"
#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/core/random.hpp"
#include "reference.hpp"
#include "tolerances.hpp"

namespace fedpdpo {

using reference::Indices;
using reference::Matrix;

struct BackendCase {
  std::string name;
  std::unique_ptr<Backend> (*make)();  ///< null where there is no such device: the test is skipped
};

inline void PrintTo(const BackendCase& backend, std::ostream* out) { *out << backend.name; }

/// A CPU backend whose kernels are limited to these Highway targets, from now on and in the whole process; 0: no limit.
inline std::unique_ptr<Backend> cpu_backend_of(std::int64_t targets, int num_threads) {
  hwy::SetSupportedTargetsForTest(0);
  if (targets != 0 && (hwy::SupportedTargets() & targets) == 0) return nullptr;
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return make_cpu_backend({.num_threads = num_threads});
}

/// The backends of this test program (cases.cpp).
std::vector<BackendCase> backend_cases();

inline std::uint16_t bf16_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float bf16_value(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline Matrix rounded_to_bf16(Matrix m) {
  for (double& v : m.values) v = bf16_value(bf16_bits(static_cast<float>(v)));
  return m;
}

/// A view at column `left` of a wider tensor.
struct Buffer {
  Tensor tensor;
  View view;
  std::int64_t left = 0;
};

class OperationTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    backend_ = GetParam().make();
    if (!backend_) GTEST_SKIP() << "no device for " << GetParam().name;
  }

  /// Standard normal numbers, exact in fp32.
  Matrix random(std::int64_t rows, std::int64_t cols, double spread = 1) {
    Matrix m(rows, cols);
    for (double& v : m.values) v = static_cast<float>(spread * stream_.normal());
    return m;
  }
  Indices random_indices(std::int64_t count, std::int64_t bound) {
    Indices indices(static_cast<std::size_t>(count));
    for (auto& i : indices) i = static_cast<std::int32_t>(stream_.below(static_cast<std::uint64_t>(bound)));
    return indices;
  }

  Buffer put(const Matrix& m, std::int64_t left = 0, std::int64_t right = 0) {
    Buffer buffer = poisoned(m.rows, m.cols, left, right);
    std::vector<float> host = host_of(buffer.tensor);
    for (std::int64_t i = 0; i < m.rows; ++i) {
      for (std::int64_t j = 0; j < m.cols; ++j) {
        host[static_cast<std::size_t>(i * buffer.tensor.cols() + left + j)] = static_cast<float>(m(i, j));
      }
    }
    backend_->copy_to_device(buffer.tensor.view().data, host.data(), host.size() * sizeof(float));
    return buffer;
  }
  Buffer put_bf16(const Matrix& m, std::int64_t right = 0) {
    Buffer buffer;
    buffer.tensor = Tensor(*backend_, m.rows, m.cols + right, DType::bf16);
    buffer.view = buffer.tensor.view().columns(0, m.cols);
    std::vector<std::uint16_t> host(static_cast<std::size_t>(m.rows * (m.cols + right)), 0x7fc0);
    for (std::int64_t i = 0; i < m.rows; ++i) {
      for (std::int64_t j = 0; j < m.cols; ++j) {
        host[static_cast<std::size_t>(i * (m.cols + right) + j)] = bf16_bits(static_cast<float>(m(i, j)));
      }
    }
    backend_->copy_to_device(buffer.tensor.view().data, host.data(), host.size() * 2);
    return buffer;
  }
  Buffer put(const Indices& indices) {
    Buffer buffer;
    buffer.tensor = Tensor(*backend_, 1, static_cast<std::int64_t>(indices.size()), DType::i32);
    buffer.view = buffer.tensor.view();
    backend_->copy_to_device(buffer.view.data, indices.data(), indices.size() * sizeof(std::int32_t));
    return buffer;
  }
  /// An output, full of NaN.
  Buffer poisoned(std::int64_t rows, std::int64_t cols, std::int64_t left = 0, std::int64_t right = 0) {
    Buffer buffer;
    buffer.tensor = Tensor(*backend_, rows, left + cols + right);
    const std::vector<float> host(static_cast<std::size_t>(rows * (left + cols + right)),
                                  std::numeric_limits<float>::quiet_NaN());
    backend_->copy_to_device(buffer.tensor.view().data, host.data(), host.size() * sizeof(float));
    buffer.view = buffer.tensor.view().columns(left, left + cols);
    buffer.left = left;
    return buffer;
  }

  std::vector<float> host_of(const Tensor& tensor) {
    std::vector<float> host(tensor.bytes() / sizeof(float));
    backend_->copy_to_host(host.data(), tensor.view().data, tensor.bytes());
    return host;
  }
  Matrix get(const Buffer& buffer) {
    const std::vector<float> host = host_of(buffer.tensor);
    Matrix m(buffer.view.rows, buffer.view.cols);
    for (std::int64_t i = 0; i < m.rows; ++i) {
      for (std::int64_t j = 0; j < m.cols; ++j) {
        m(i, j) = host[static_cast<std::size_t>(i * buffer.tensor.cols() + buffer.left + j)];
      }
    }
    return m;
  }
  /// Nothing outside of the view was written.
  void expect_guard(const Buffer& buffer) {
    const std::vector<float> host = host_of(buffer.tensor);
    const std::int64_t width = buffer.tensor.cols();
    for (std::size_t i = 0; i < host.size(); ++i) {
      const std::int64_t column = static_cast<std::int64_t>(i) % width - buffer.left;
      if (column < 0 || column >= buffer.view.cols) {
        ASSERT_TRUE(std::isnan(host[i])) << "written outside of the view, element " << i;
      }
    }
  }
  void expect_close(const Matrix& expected, const Buffer& buffer, double tolerance,
                    std::source_location asked = std::source_location::current()) {
    expect_close(expected, get(buffer), tolerance, asked);
    expect_guard(buffer);
  }
  static void expect_close(const Matrix& expected, const Matrix& found, double tolerance,
                           std::source_location asked = std::source_location::current()) {
    ASSERT_EQ(expected.rows, found.rows);
    ASSERT_EQ(expected.cols, found.cols);
    EXPECT_LE(distance(expected, found), tolerance)
        << "asked for in " << asked.file_name() << ":" << asked.line() << "\n"
        << where_it_differs(expected, found, tolerance);
  }
  /// NaN where anything found is not finite.
  static double distance(const Matrix& expected, const Matrix& found) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
      const double error = found.values[i] - expected.values[i];
      difference += error * error;
      norm += expected.values[i] * expected.values[i];
    }
    return difference == 0 ? 0 : std::sqrt(difference / norm);
  }

  /// Slots of per-client matrices, apart from one another by a few NaN.
  struct Slots {
    Buffer buffer;
    ClientMatrix matrix;
  };
  Slots slots(const std::vector<Matrix>& matrices, std::int64_t left = 2, std::int64_t right = 3) {
    const std::int64_t rows = matrices[0].rows, cols = matrices[0].cols;
    Matrix flat(static_cast<std::int64_t>(matrices.size()), rows * cols);
    for (std::size_t s = 0; s < matrices.size(); ++s) {
      std::copy(matrices[s].values.begin(), matrices[s].values.end(),
                flat.values.begin() + static_cast<std::int64_t>(s) * rows * cols);
    }
    Slots result{put(flat, left, right), {}};
    result.matrix = {result.buffer.view.f32(), rows, cols, result.buffer.view.stride};
    return result;
  }
  std::vector<Matrix> from_slots(const Slots& slots) {
    const Matrix flat = get(slots.buffer);
    std::vector<Matrix> matrices;
    for (std::int64_t s = 0; s < flat.rows; ++s) {
      Matrix m(slots.matrix.rows, slots.matrix.cols);
      std::copy_n(flat.values.begin() + s * flat.cols, flat.cols, m.values.begin());
      matrices.push_back(m);
    }
    expect_guard(slots.buffer);
    return matrices;
  }
  static Matrix rows_of(const Matrix& m, const MemberRows& member) {
    Matrix part(member.end - member.begin, m.cols);
    std::copy_n(m.values.begin() + member.begin * m.cols, part.values.size(), part.values.begin());
    return part;
  }
  static void set_rows(Matrix& m, const MemberRows& member, const Matrix& part) {
    std::copy(part.values.begin(), part.values.end(), m.values.begin() + member.begin * m.cols);
  }

  std::unique_ptr<Backend> backend_;
  RandomStream stream_{StreamId{.seed = 20261123, .purpose = Purpose::test}};
};

struct CaseName {
  std::string operator()(const testing::TestParamInfo<BackendCase>& info) const { return info.param.name; }
};

#define FEDPDPO_ON_EVERY_BACKEND(suite) \
  INSTANTIATE_TEST_SUITE_P(Backends, suite, testing::ValuesIn(backend_cases()), CaseName())

}  // namespace fedpdpo
