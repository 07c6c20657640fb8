// fp32 products by own kernels: they reach oneDNN's speed, and oneDNN 2.6's sgemm gives a row other bits in batches of
// few rows. bf16 products by oneDNN's matmul, one cached primitive a shape, whose rows do keep their bits. oneDNN is
// included in this file only; to move to version 3, the constructor in `Primitives::get` loses its descriptor class.
#include "cpu/gemm.hpp"

#include <omp.h>

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

bool cpu_has_bf16() {
  const unsigned bf16 = dnnl_cpu_isa_avx512_core_bf16;
  return (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & bf16) == bf16;
}

}  // namespace fedpdpo

namespace fedpdpo::cpu {
namespace {

using dnnl::memory;

// oneDNN runs on as many threads as OpenMP would: fixed for the duration of a call.
class ThreadCount {
 public:
  explicit ThreadCount(int num_threads) : before_(omp_get_max_threads()) {
    if (before_ != num_threads) omp_set_num_threads(num_threads);
  }
  ~ThreadCount() { omp_set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

// Few columns fill no vector: sums along k are faster. By (N, K) only.
bool prefers_dot(std::int64_t n, std::int64_t k) { return n <= 16 && k >= 128; }

}  // namespace

struct Gemm::Primitives {
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool>;
  struct Entry {
    dnnl::matmul matmul;
    memory a, b, c;
  };
  static constexpr std::size_t kCapacity = 1024;

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Entry> entries;

  Entry& get(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t b_stride, bool transpose_b, bool accumulate,
             std::int64_t c_stride) {
    const Key key{m, n, k, b_stride, c_stride, transpose_b, accumulate};
    const auto found = entries.find(key);
    if (found != entries.end()) return found->second;
    if (entries.size() >= kCapacity) entries.clear();
    const memory::desc a_desc({m, k}, memory::data_type::bf16, memory::dims{k, 1});
    const memory::dims b_strides = transpose_b ? memory::dims{1, b_stride} : memory::dims{b_stride, 1};
    const memory::desc b_desc({k, n}, memory::data_type::bf16, b_strides);
    const memory::desc c_desc({m, n}, memory::data_type::f32, memory::dims{c_stride, 1});
    dnnl::primitive_attr attributes;
    if (accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a_desc, b_desc, c_desc), attributes, engine);
    Entry entry{dnnl::matmul(description), memory(a_desc, engine, nullptr), memory(b_desc, engine, nullptr),
                memory(c_desc, engine, nullptr)};
    return entries.emplace(key, std::move(entry)).first->second;
  }
};

Gemm::Gemm(int num_threads)
    : num_threads_(num_threads),
      native_bf16_(cpu_has_bf16()),
      panels_(static_cast<std::size_t>(num_threads)),
      primitives_(std::make_unique<Primitives>()) {}
Gemm::~Gemm() = default;

void Gemm::tiles(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, StridedMatrix a, const float* b,
                 std::int64_t b_stride, bool transpose_b, bool accumulate, float* c, std::int64_t c_stride) {
  constexpr std::int64_t kWidth = 48, kHeight = 8;
  const BOrder order = transpose_b ? BOrder::by_column : BOrder::by_depth;
  // Cut C by columns where there are enough, so that each panel of B is packed once.
  const bool by_columns = n >= 2 * kWidth * num_threads_;
  const auto body = [&](std::int64_t begin, std::int64_t end) {
    float* panel = panels_[omp_get_thread_num() % num_threads_].get(kPanelFloats);
    if (by_columns) {
      const float* columns = b + (transpose_b ? begin * b_stride : begin);
      tile_gemm(m, end - begin, k, alpha, a, columns, b_stride, order, accumulate, c + begin, c_stride, panel);
    } else {
      const StridedMatrix rows{a.data + begin * a.row_stride, a.row_stride, a.col_stride};
      tile_gemm(end - begin, n, k, alpha, rows, b, b_stride, order, accumulate, c + begin * c_stride, c_stride, panel);
    }
  };
  parallel_ranges(num_threads_, by_columns ? n : m, m * n * k / 16, body, by_columns ? kWidth : kHeight);
}

void Gemm::multiply(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a, std::int64_t a_stride,
                    const float* b, std::int64_t b_stride, bool transpose_b, bool accumulate, float* c,
                    std::int64_t c_stride) {
  if (!prefers_dot(n, k)) {
    tiles(m, n, k, alpha, {a, a_stride, 1}, b, b_stride, transpose_b, accumulate, c, c_stride);
    return;
  }
  if (!transpose_b) {
    float* flipped = wide_.get(static_cast<std::size_t>(n * k));
    for (std::int64_t row = 0; row < k; ++row) {
      for (std::int64_t col = 0; col < n; ++col) flipped[col * k + row] = b[row * b_stride + col];
    }
    b = flipped;
    b_stride = k;
  }
  parallel_ranges(num_threads_, m, m * n * k / 16, [&](std::int64_t begin, std::int64_t end) {
    dot_gemm(end - begin, n, k, alpha, a + begin * a_stride, a_stride, b, b_stride, accumulate, c + begin * c_stride,
             c_stride);
  });
}

void Gemm::multiply_outer(std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
                          std::int64_t a_stride, const float* b, std::int64_t b_stride, bool accumulate, float* c,
                          std::int64_t c_stride) {
  if (n >= 16 || m <= n) {
    tiles(m, n, k, alpha, {a, 1, a_stride}, b, b_stride, false, accumulate, c, c_stride);
    return;
  }
  // C^T = B^T A has rows wide enough for vectors.
  float* flipped = wide_.get(static_cast<std::size_t>(n * m));
  tiles(n, m, k, alpha, {b, 1, b_stride}, a, a_stride, false, false, flipped, m);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      float& out = c[i * c_stride + j];
      out = accumulate ? out + flipped[j * m + i] : flipped[j * m + i];
    }
  }
}

void Gemm::multiply_bf16(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_stride,
                         const std::uint16_t* b, std::int64_t b_stride, bool transpose_b, bool accumulate, float* c,
                         std::int64_t c_stride) {
  if (!native_bf16_) {
    const std::int64_t b_rows = transpose_b ? n : k, b_cols = transpose_b ? k : n;
    float* wide = wide_.get(static_cast<std::size_t>(b_rows * b_cols));
    for (std::int64_t r = 0; r < b_rows; ++r) widen_bf16(b + r * b_stride, b_cols, wide + r * b_cols);
    multiply(m, n, k, 1, a, a_stride, wide, b_cols, transpose_b, accumulate, c, c_stride);
    return;
  }
  std::uint16_t* rounded = activations_.get(static_cast<std::size_t>(m * k));
  parallel_ranges(num_threads_, m, m * k, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) round_to_bf16(a + r * a_stride, k, rounded + r * k);
  });
  const ThreadCount threads(num_threads_);
  Primitives::Entry& entry = primitives_->get(m, n, k, b_stride, transpose_b, accumulate, c_stride);
  entry.a.set_data_handle(rounded);
  entry.b.set_data_handle(const_cast<std::uint16_t*>(b));
  entry.c.set_data_handle(c);
  entry.matmul.execute(primitives_->stream,
                       {{DNNL_ARG_SRC, entry.a}, {DNNL_ARG_WEIGHTS, entry.b}, {DNNL_ARG_DST, entry.c}});
  primitives_->stream.wait();
}

}  // namespace fedpdpo::cpu
