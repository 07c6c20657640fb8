// Times the CPU backend's operations at the shapes of SmolLM2-135M and stories260k, as Markdown. Each sample runs the
// operation right after a burst of fused multiply-adds (or of memory copies) on the same core, and the medians of the
// figure and of its share of that ceiling are printed: on a shared machine the share is the steadier of the two.
//   bench_ops [threads]
#include <immintrin.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"

namespace {

using namespace fedpdpo;

int num_threads = 1;

/// Processor time for one thread, so that neighbours who preempt us do not count; wall clock for several.
double seconds() {
  timespec now{};
  clock_gettime(num_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

constexpr int kChains = 24, kBurst = 20000;

__attribute__((target("avx512f"))) float burst_avx512() {
  __m512 sums[kChains];
  for (auto& s : sums) s = _mm512_set1_ps(1);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kBurst; ++i) {
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_fmadd_ps(sums[j], a, b);
  }
  float total = 0;
  for (const auto& s : sums) {
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, s);
    total += lanes[0];
  }
  return total;
}

__attribute__((target("avx2,fma"))) float burst_avx2() {
  __m256 sums[12];
  for (auto& s : sums) s = _mm256_set1_ps(1);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kBurst; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sums[j] = _mm256_fmadd_ps(sums[j], a, b);
  }
  float total = 0;
  for (const auto& s : sums) total += _mm256_cvtss_f32(s);
  return total;
}

volatile float sink;

/// GFLOP/s of a core just now.
double fma_ceiling() {
  const bool wide = __builtin_cpu_supports("avx512f");
  const double begin = seconds();
  sink = wide ? burst_avx512() : burst_avx2();
  return (wide ? kChains * 32.0 : 12 * 16.0) * kBurst / (seconds() - begin) * 1e-9;
}

/// GB/s, read and written, of copying buffers larger than the caches just now.
double copy_ceiling() {
  static std::vector<float> from(16 << 20, 1.0f), to(16 << 20);
  const double begin = seconds();
  std::copy(from.begin(), from.end(), to.begin());
  sink = to[12345];
  return 8.0 * static_cast<double>(from.size()) / (seconds() - begin) * 1e-9;
}

struct Bench {
  std::unique_ptr<Backend> backend;
  std::vector<Tensor> tensors;
  std::mt19937 random{1};

  View tensor(std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    tensors.emplace_back(*backend, rows, cols, dtype);
    return tensors.back().view();
  }
  View normal(std::int64_t rows, std::int64_t cols) {
    const View view = tensor(rows, cols);
    std::normal_distribution<float> draw;
    for (std::int64_t i = 0; i < view.size(); ++i) view.f32()[i] = draw(random);
    return view;
  }

  /// `work` in units of 1e9 (GFLOP or GB) a call.
  void measure(const std::string& name, double work, const char* unit, const std::function<double()>& ceiling,
               const std::function<void()>& call) {
    call();
    double once = seconds();
    call();
    once = seconds() - once;
    const int inner = std::max(1, static_cast<int>(0.002 / once));
    std::vector<double> rates, shares;
    for (int sample = 0; sample < 31; ++sample) {
      const double limit = ceiling();
      const double begin = seconds();
      for (int i = 0; i < inner; ++i) call();
      const double rate = work * inner / (seconds() - begin);
      rates.push_back(rate);
      if (limit > 0) shares.push_back(rate / limit);
      if (sample >= 6 && once > 0.05) break;
    }
    std::sort(rates.begin(), rates.end());
    std::sort(shares.begin(), shares.end());
    const double rate = rates[rates.size() / 2];
    std::printf("| %s | %.1f us | %.1f %s | %.1f | %.0f%% |\n", name.c_str(), work / rate * 1e6, rate, unit,
                rates.back(), 100 * shares[shares.size() / 2]);
    std::fflush(stdout);
  }
  void flops(const std::string& name, double flop, const std::function<void()>& call) {
    measure(name, flop * 1e-9, "GFLOP/s", fma_ceiling, call);
  }
  void bytes(const std::string& name, double count, const std::function<void()>& call) {
    measure(name, count * 1e-9, "GB/s", copy_ceiling, call);
  }

  void linear(std::int64_t rows, std::int64_t in, std::int64_t out, DType dtype) {
    const View x = normal(rows, in), w = tensor(out, in, dtype), y = tensor(rows, out);
    backend->copy(normal(out, in), w);
    const std::string shape = std::string(dtype_name(dtype)) + " T=" + std::to_string(rows) +
                              " K=" + std::to_string(in) + " N=" + std::to_string(out);
    const double work = 2.0 * static_cast<double>(rows * in) * static_cast<double>(out);
    flops("linear " + shape, work, [&] { backend->linear(x, w, {}, y, Write::overwrite); });
    flops("linear_backward " + shape, work, [&] { backend->linear_backward(y, w, x, Write::overwrite); });
    tensors.clear();
  }
  void lora(std::int64_t rows, std::int64_t d, std::int64_t rank) {
    const View x = normal(rows, d), low = normal(rows, rank), y = normal(rows, d), a = normal(rank, d),
               b = normal(d, rank);
    const std::vector<MemberRows> all = {{0, static_cast<std::int32_t>(rows), 0}};
    const std::string shape = " T=" + std::to_string(rows) + " d=" + std::to_string(d) + " r=" + std::to_string(rank);
    const double work = 2.0 * static_cast<double>(rows * d * rank);
    const ClientMatrix pa{a.f32(), rank, d, 0}, pb{b.f32(), d, rank, 0};
    flops("x A^T" + shape, work,
          [&] { backend->grouped_matmul(all, Multiply::by_transpose, 1, x, pa, low, Write::overwrite); });
    flops("h B^T (+=)" + shape, work,
          [&] { backend->grouped_matmul(all, Multiply::by_transpose, 1, low, pb, y, Write::accumulate); });
    flops("d_h = d_y B" + shape, work,
          [&] { backend->grouped_matmul(all, Multiply::by_matrix, 1, y, pb, low, Write::overwrite); });
    flops("d_x += d_h A" + shape, work,
          [&] { backend->grouped_matmul(all, Multiply::by_matrix, 1e-3f, low, pa, x, Write::accumulate); });
    flops("d_A = d_h^T x" + shape, work, [&] { backend->grouped_outer(all, 1, low, x, pa, Write::overwrite); });
    flops("d_B = d_y^T h" + shape, work, [&] { backend->grouped_outer(all, 1, y, low, pb, Write::overwrite); });
    tensors.clear();
  }
  void attention(const std::string& name, const std::vector<Segment>& segments,
                 const std::vector<std::int32_t>& offsets, AttentionShape shape) {
    const std::int64_t rows = segments.back().end, width = std::int64_t{shape.num_heads} * shape.head_dim;
    shape.scale = 0.1f;
    const View qkv = normal(rows, width + 2 * shape.num_kv_heads * shape.head_dim), out = tensor(rows, width),
               lse = tensor(rows, shape.num_heads), d_out = normal(rows, width), d_qkv = tensor(rows, qkv.cols);
    double keys = 0;
    for (const Segment& s : segments) {
      const double own = s.end - s.begin, context = s.context_end - s.context_begin;
      keys += own * context + own * (own + 1) / 2;
    }
    const AttentionPlan plan{segments, offsets};
    const double work = 4 * keys * static_cast<double>(width);
    flops("attention " + name, work, [&] { backend->attention(plan, shape, qkv, out, lse); });
    flops("attention_backward " + name, 2.5 * work,
          [&] { backend->attention_backward(plan, shape, qkv, out, lse, d_out, d_qkv); });
    tensors.clear();
  }
  void rows(std::int64_t t, std::int64_t d, std::int64_t n, std::int64_t vocabulary, std::int64_t targets,
            std::int64_t trainables) {
    const View x = normal(t, d), y = normal(t, d), dy = normal(t, d), w = normal(1, d), gate = normal(t, 2 * n),
               mlp = normal(t, n), mlp_out = tensor(t, 2 * n), logits = normal(targets, vocabulary),
               lse = tensor(1, targets), log_prob = tensor(1, targets), c = normal(1, targets);
    const View ids = tensor(1, targets, DType::i32), values = normal(1, trainables), g = normal(1, trainables),
               m = tensor(1, trainables), v = tensor(1, trainables);
    const double td = 4.0 * static_cast<double>(t * d), tn = 4.0 * static_cast<double>(t * n);
    const double rv = 4.0 * static_cast<double>(targets * vocabulary), flat = 4.0 * static_cast<double>(trainables);
    const std::string shape = " T=" + std::to_string(t) + " d=" + std::to_string(d);
    const std::string wide = " T=" + std::to_string(t) + " n=" + std::to_string(n);
    const std::string head = " R=" + std::to_string(targets) + " V=" + std::to_string(vocabulary);
    bytes("rms_norm" + shape, 2 * td, [&] { backend->rms_norm(x, w, 1e-5f, y); });
    bytes("rms_norm_backward +=" + shape, 4 * td,
          [&] { backend->rms_norm_backward(x, w, 1e-5f, dy, y, Write::accumulate); });
    bytes("layer_norm" + shape, 2 * td, [&] { backend->layer_norm(x, w, w, 1e-5f, y); });
    bytes("axpy +=" + shape, 3 * td, [&] { backend->axpy(1e-3f, x, y, Write::accumulate); });
    bytes("dropout" + shape, 2 * td, [&] { backend->dropout(0.1f, {}, 0, x, y, Write::overwrite); });
    for (const auto& [name, kind] : {std::pair{"silu", Activation::silu},
                                     {"gelu_tanh", Activation::gelu_tanh},
                                     {"gelu_erf", Activation::gelu_erf}}) {
      bytes(std::string("gated ") + name + wide, 3 * tn, [&] { backend->gated_activation(kind, gate, mlp); });
      bytes(std::string("gated backward ") + name + wide, 5 * tn,
            [&] { backend->gated_activation_backward(kind, gate, mlp, mlp_out); });
    }
    bytes("log_softmax" + head, rv, [&] { backend->log_softmax(logits, ids, log_prob, lse); });
    bytes("log_softmax_backward" + head, 2 * rv, [&] { backend->log_softmax_backward(ids, lse, c, logits, logits); });
    bytes("adamw n=" + std::to_string(trainables), 7 * flat, [&] { backend->adamw({}, values, g, m, v); });
    bytes("squared_norm n=" + std::to_string(trainables), flat,
          [&] { sink = static_cast<float>(backend->squared_norm(g)); });
    tensors.clear();
  }
};

}  // namespace

int main(int argc, char** argv) {
  Bench bench;
  num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  bench.backend = make_cpu_backend({.num_threads = num_threads});
  std::vector<double> fma, copy;
  for (int i = 0; i < 31; ++i) fma.push_back(fma_ceiling()), copy.push_back(copy_ceiling());
  std::sort(fma.begin(), fma.end());
  std::sort(copy.begin(), copy.end());
  std::printf("%s. Ceilings of one core, median (best): FMA %.0f (%.0f) GFLOP/s, copy %.1f (%.1f) GB/s.\n\n",
              bench.backend->description().c_str(), fma[15], fma.back(), copy[15], copy.back());
  std::printf("| operation | time | median | best | share of ceiling |\n| --- | --- | --- | --- | --- |\n");
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t out : {576, 960, 1536, 3072, 49152}) bench.linear(384, 576, out, dtype);
  }
  for (const std::int64_t out : {64, 128, 344, 512}) bench.linear(120, 64, out, DType::f32);
  bench.lora(384, 576, 8);
  bench.lora(384, 1536, 8);
  bench.lora(120, 64, 8);
  bench.attention("T=384, prefix 128, 9/3 heads of 64", {{0, 128, 0, 0}, {128, 256, 0, 128}, {256, 384, 0, 128}},
                  {0, 3}, {9, 3, 64, 1});
  std::vector<Segment> small;
  std::vector<std::int32_t> offsets = {0};
  for (std::int32_t g = 0; g < 8; ++g) {
    small.push_back({12 * g, 12 * g + 8, 12 * g, 12 * g});
    small.push_back({12 * g + 8, 12 * g + 10, 12 * g, 12 * g + 8});
    small.push_back({12 * g + 10, 12 * g + 12, 12 * g, 12 * g + 8});
    offsets.push_back(static_cast<std::int32_t>(small.size()));
  }
  bench.attention("8 groups of 12, 8/4 heads of 8", small, offsets, {8, 4, 8, 1});
  bench.rows(384, 576, 1536, 49152, 64, 2000000);
  bench.rows(96, 64, 172, 512, 64, 50000);
}
