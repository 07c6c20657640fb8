// What only an emulated device can show: the order of threads changes no bits, the steady state neither allocates nor
// asks cuBLASLt again nor waits, and what goes wrong on a device is one line that names it.
#include "backend/fixture.hpp"
#include "device_errors.hpp"
#include "emulation.hpp"
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo {
namespace {

void expect_line(const std::string& line, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(line.find(part), std::string::npos) << line << "\n  lacks " << part;
  EXPECT_EQ(line.find('\n'), std::string::npos) << line;
}

class EmulatedDevice : public testing::Test {
 protected:
  void TearDown() override {
    emulation::set_order(emulation::Order::forward);
    emulation::set_device_count(1);
    emulation::set_device_memory(std::size_t{1} << 30);
    emulation::set_gemm_support(emulation::GemmSupport::any_rows);
    emulation::lose_device(false);
    emulation::keep_device_busy(false);
    emulation::set_memory_pools(true);
    emulation::set_most_pinned(SIZE_MAX);
  }
};

TEST_F(EmulatedDevice, IsListed) {
  emulation::set_device_count(2);
  ASSERT_EQ(cuda_devices().devices.size(), 2u);
  EXPECT_EQ(cuda_devices().devices[1].name, "emulated device 1");
  EXPECT_EQ(cuda_devices().why_none, "");
  expect_line(make_cuda_backend({.device = 1})->description(), {"emulated device 1, 1 GiB"});
  expect_line(device_error([] { make_cuda_backend({.device = 2}); }), {"no such device", "cudaSetDevice"});
  emulation::keep_device_busy(true);
  expect_line(device_error([] { make_cuda_backend({}); }), {"no more processes", "cudaErrorDevicesUnavailable"});
  emulation::set_device_count(0);
  EXPECT_TRUE(cuda_devices().devices.empty());
  expect_line(cuda_devices().why_none, {"no CUDA device: "});
}

TEST_F(EmulatedDevice, OutOfMemoryIsOneLine) {
  const auto backend = make_cuda_backend({});
  emulation::set_device_memory(std::size_t{64} << 20);
  expect_line(device_error([&] { Tensor(*backend, 1, 64 << 20); }),
              {"out of device memory", "cudaMallocAsync of 256 MiB"});
  Tensor small(*backend, 4, 4);  // the backend goes on
  backend->fill(small.view(), 2);
  EXPECT_EQ(backend->squared_norm(small.view()), 64);
}

TEST_F(EmulatedDevice, MissingPageLockedMemoryIsNotTheDevices) {
  emulation::set_most_pinned(1 << 20);
  try {
    make_cuda_backend({});
    FAIL() << "a ring of 4 MiB was given";
  } catch (const OutOfDeviceMemory& error) {
    FAIL() << "a smaller cohort would not help: " << error.what();
  } catch (const DeviceError& error) {
    expect_line(error.what(), {"no page-locked host memory", "4 MiB"});
  }
}

TEST_F(EmulatedDevice, MemoryThatTheStreamStillGivesBackIsWaitedFor) {
  const auto backend = make_cuda_backend({});
  emulation::set_device_memory(std::size_t{160} << 20);
  for (int i = 0; i < 3; ++i) Tensor(*backend, 1, 16 << 20);
  EXPECT_EQ(backend->allocated().now, 0u);
  EXPECT_EQ(backend->allocated().peak, std::size_t{64} << 20);
  EXPECT_THROW(Tensor(*backend, 1, 64 << 20), OutOfDeviceMemory);
  EXPECT_EQ(backend->allocated().now, 0u);
}

TEST_F(EmulatedDevice, ALostDeviceIsOneLine) {
  const auto backend = make_cuda_backend({});
  Tensor x(*backend, 4, 4);
  emulation::lose_device(true);
  expect_line(device_error([&] { backend->fill(x.view(), 1); }),
              {"a kernel failed", "fill", "cudaErrorIllegalAddress"});
  expect_line(device_error([&] { backend->synchronize(); }), {"cudaStreamSynchronize"});
  float number = 0;
  expect_line(device_error([&] { backend->copy_to_host(&number, x.view().data, 4); }), {"to the host"});
  // Whatever is asked for says so, and what is left is taken down without more.
  const auto recording = backend->make_recording();
  expect_line(device_error([&] { backend->run(*recording, [&] { backend->fill(x.view(), 1); }); }),
              {"cudaErrorIllegalAddress"});
  expect_line(device_error([&] { Tensor(*backend, 4, 4); }), {"cudaMallocAsync: cudaErrorIllegalAddress"});
  expect_line(device_error([&] { backend->copy_to_device(x.view().data, &number, 4); }), {"to the device"});
  expect_line(device_error([&] { backend->memory(); }), {"a kernel failed"});
  expect_line(device_error([&] { backend->allocate_pinned(64); }), {"cudaErrorIllegalAddress"});
}

TEST_F(EmulatedDevice, DebugModeNamesTheOperationThatMadeNaN) {
  const auto backend = make_cuda_backend({.check_outputs = true});
  Tensor x(*backend, 3, 4), y(*backend, 3, 4), weights(*backend, 1, 3);
  const float numbers[] = {1, 1, std::numeric_limits<float>::infinity()};
  backend->copy_to_device(weights.view().data, numbers, sizeof numbers);
  backend->scale_rows(weights.view().columns(0, 2), x.view().row_range(0, 2));
  expect_line(device_error([&] { backend->scale_rows(weights.view(), x.view()); }),
              {"NaN in the output of scale_rows, (3, 4), first in row 2, column 0"});
  // Rows that belong to no member may hold anything.
  backend->fill(y.view(), std::nanf(""));
  const std::vector<MemberRows> members = {{0, 1, 0}};
  Tensor p(*backend, 4, 4);
  backend->grouped_matmul(members, Multiply::by_matrix, 1, x.view(), {p.view().f32(), 4, 4, 16}, y.view(),
                          Write::overwrite);
  expect_line(make_cuda_backend({.check_outputs = true})->description(), {"checked"});
}

TEST_F(EmulatedDevice, HostMemoryIsFreeAsSoonAsACopyReturns) {
  const auto backend = make_cuda_backend({});
  constexpr std::size_t count = 3'000'001;  // beyond the ring
  Tensor x(*backend, 1, count), small(*backend, 1, 3);
  std::vector<float> host(count);
  for (std::size_t i = 0; i < count; ++i) host[i] = static_cast<float>(i % 1013);
  std::vector<float> copy = host, found(count);
  backend->copy_to_device(x.view().data, copy.data(), count * sizeof(float));
  std::fill(copy.begin(), copy.end(), -1.0f);
  for (int i = 0; i < 100'000; ++i) {
    const float three[] = {1.0f * i, 2.0f * i, 3.0f * i};
    backend->copy_to_device(small.view().data, three, sizeof three);
  }
  backend->copy_to_host(found.data(), x.view().data, count * sizeof(float));
  EXPECT_EQ(found, host);
  float last[3];
  backend->copy_to_host(last, small.view().data, sizeof last);
  EXPECT_EQ(last[2], 3.0f * 99'999);
}

/// A little of everything that has state: products of both kinds, attention with a plan, uploads.
class Step {
 public:
  explicit Step(DType weights = DType::f32) : backend_(make_cuda_backend({})), weights_(weights) {
    RandomStream random({.seed = 5, .purpose = Purpose::test});
    std::vector<float> numbers(160 * 160);
    for (float& v : numbers) v = static_cast<float>(0.08 * random.normal());
    backend_->copy_to_device(x_.view().data, numbers.data(), x_.bytes());
    Tensor wide(*backend_, 160, 160);
    backend_->copy_to_device(wide.view().data, numbers.data(), wide.bytes());
    backend_->copy(wide.view(), w_.view());
    backend_->copy(wide.view(), p_.view());
  }

  std::vector<float> run(std::int32_t rows) {
    const View x = x_.first(rows), y = y_.first(rows), z = z_.first(rows);
    const std::vector<MemberRows> members = {{0, rows / 3, 0}, {rows / 3, rows, 0}};
    const std::vector<Segment> segments = {{0, 5, 0, 0}, {5, 9, 0, 5}, {9, rows, 0, 5}};
    const std::vector<std::int32_t> groups = {0, 3};
    const AttentionShape heads{2, 1, 40, 0.2f};
    backend_->linear(x, w_.view(), {}, y, Write::overwrite);
    backend_->linear_backward(y, w_.view(), z, Write::overwrite);
    backend_->grouped_matmul(members, Multiply::by_transpose, 0.5f, x, {p_.view().f32(), 8, 160, 0}, y.columns(0, 8),
                             Write::accumulate);
    backend_->grouped_outer(members, 1, y, x, {g_.view().f32(), 160, 160, 0}, Write::overwrite);
    backend_->grouped_matmul(members, Multiply::by_matrix, 1, y, {p_.view().f32(), 160, 160, 0}, x, Write::overwrite);
    backend_->attention({segments, groups}, heads, y, z.columns(0, 80), lse_.first(rows));
    backend_->attention_backward({segments, groups}, heads, y, z.columns(0, 80), lse_.first(rows), x.columns(0, 80),
                                 d_.first(rows));
    backend_->axpy(0.01f, d_.first(rows), x, Write::overwrite);
    std::vector<float> found(d_.bytes() / sizeof(float));
    backend_->copy_to_host(found.data(), d_.view().data, d_.bytes());
    return found;
  }

  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
  DType weights_;
  Tensor x_{*backend_, 30, 160}, y_{*backend_, 30, 160}, z_{*backend_, 30, 160}, d_{*backend_, 30, 160},
      g_{*backend_, 160, 160};
  Tensor w_{*backend_, 160, 160, weights_}, p_{*backend_, 160, 160}, lse_{*backend_, 30, 2};
};

TEST_F(EmulatedDevice, TheSteadyStateNeitherAllocatesNorAsksNorWaits) {
  for (const DType weights : {DType::f32, DType::bf16}) {
    Step step(weights);
    step.run(30);
    const emulation::Counts before = emulation::counts();
    step.run(20);
    step.run(27);  // batches of other sizes
    const emulation::Counts after = emulation::counts();
    EXPECT_EQ(after.allocations, before.allocations);
    EXPECT_EQ(after.heuristics, before.heuristics);
    EXPECT_EQ(after.waits - before.waits, 4u);  // two for each copy to the host
    EXPECT_GT(after.launches, before.launches);
  }
}

TEST_F(EmulatedDevice, TheOrderOfThreadsChangesNoBits) {
  const std::vector<float> forward = Step().run(30);
  emulation::set_order(emulation::Order::backward);
  EXPECT_EQ(Step().run(30), forward);
}

TEST_F(EmulatedDevice, WithoutMemoryPoolsTheNumbersAreTheSame) {
  const std::vector<float> expected = Step().run(30);
  emulation::set_memory_pools(false);
  Step step;
  EXPECT_EQ(step.run(30), expected);
  // Memory that is given back is another's at once: by then nothing may use it any more.
  Tensor kept(step.backend(), 64, 64), sum(step.backend(), 64, 64);
  for (int i = 0; i < 20; ++i) {
    const Tensor passing(step.backend(), 64, 64);
    step.backend().fill(passing.view(), 1);
    step.backend().axpy(1, passing.view(), sum.view(), Write::accumulate);
  }
  step.backend().copy(sum.view(), kept.view());
  EXPECT_EQ(step.backend().squared_norm(kept.view()), 64 * 64 * 400);
  const auto memory = step.backend().memory();
  emulation::set_device_memory(std::size_t{64} << 20);
  expect_line(device_error([&] { Tensor(step.backend(), 1, 64 << 20); }),
              {"out of device memory", "cudaMalloc of 256 MiB"});
  EXPECT_LT(memory->free, memory->total);
}

/// The gradient that attention of bf16 rows leaves, then how many allocations it took.
std::vector<std::uint16_t> attend_in_bf16(Backend& backend, std::int32_t rows) {
  const AttentionShape heads{4, 2, 64, 0.125f};
  const std::vector<Segment> segments = {{0, 70, 0, 0}, {70, 75, 0, 70}, {75, rows, 3, 69}};
  const std::vector<std::int32_t> groups = {0, 3};
  const Tensor qkv(backend, rows, 512, DType::bf16), out(backend, rows, 256, DType::bf16), lse(backend, rows, 4),
      d_qkv(backend, rows, 512, DType::bf16);
  RandomStream random({.seed = 6, .purpose = Purpose::test});
  std::vector<std::uint16_t> numbers(static_cast<std::size_t>(rows) * 512);
  for (auto& v : numbers) v = bf16_bits(static_cast<float>(random.normal()));
  backend.copy_to_device(qkv.view().data, numbers.data(), qkv.bytes());
  const emulation::Counts before = emulation::counts();
  backend.attention({segments, groups}, heads, qkv.view(), out.view(), lse.view());
  backend.attention_backward({segments, groups}, heads, qkv.view(), out.view(), lse.view(), out.view(), d_qkv.view());
  const emulation::Counts after = emulation::counts();
  EXPECT_EQ(after.launches - before.launches, 3u);
  EXPECT_EQ(after.waits, before.waits);
  // Rotating the gradient back takes no launch of its own.
  const Tensor positions(backend, 1, rows, DType::i32), tables(backend, 1, 32);
  backend.attention_backward({segments, groups}, heads, qkv.view(), out.view(), lse.view(), out.view(), d_qkv.view(),
                             {positions.view(), tables.view(), tables.view()});
  EXPECT_EQ(emulation::counts().launches - after.launches, 2u);
  backend.attention_backward({segments, groups}, heads, qkv.view(), out.view(), lse.view(), out.view(), d_qkv.view());
  numbers.push_back(static_cast<std::uint16_t>(after.allocations - before.allocations));
  backend.copy_to_host(numbers.data(), d_qkv.view().data, d_qkv.bytes());
  return numbers;
}

TEST_F(EmulatedDevice, AttentionInBf16AllocatesOnceAndKeepsItsBitsInAnyOrder) {
  const auto backend = make_cuda_backend({});
  std::vector<std::uint16_t> forward = attend_in_bf16(*backend, 205);
  EXPECT_GT(forward.back(), 0u);
  EXPECT_EQ(attend_in_bf16(*backend, 131).back(), 0u);  // a batch of another size
  emulation::set_order(emulation::Order::backward);
  const std::vector<std::uint16_t> backward = attend_in_bf16(*backend, 205);
  EXPECT_EQ(backward.back(), 0u);
  forward.back() = 0;
  EXPECT_EQ(backward, forward);
}

TEST_F(EmulatedDevice, APlanWhoseUploadFailedIsUploadedAgain) {
  const auto backend = make_cuda_backend({});
  constexpr std::int32_t rows = 300;
  const AttentionShape heads{1, 1, 8, 1.0f};
  const Tensor qkv(*backend, rows, 24), out(*backend, rows, 8), lse(*backend, rows, 1);
  std::vector<float> numbers(rows * 24), found(rows * 8);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 31);
  backend->copy_to_device(qkv.view().data, numbers.data(), qkv.bytes());
  const std::vector<Segment> one = {{0, 4, 0, 0}};
  const std::vector<std::int32_t> one_group = {0, 1};
  backend->attention({one, one_group}, heads, qkv.view().row_range(0, 4), out.view().row_range(0, 4),
                     lse.view().row_range(0, 4));
  // Every row a segment of its own: it finds its own values alone.
  std::vector<Segment> segments;
  std::vector<std::int32_t> groups = {0};
  for (std::int32_t i = 0; i < rows; ++i) {
    segments.push_back({i, i + 1, i, i});
    groups.push_back(i + 1);
  }
  emulation::set_device_memory(0);
  EXPECT_THROW(backend->prepare({segments, groups}), OutOfDeviceMemory);
  emulation::set_device_memory(std::size_t{1} << 30);
  backend->attention({segments, groups}, heads, qkv.view(), out.view(), lse.view());
  backend->copy_to_host(found.data(), out.view().data, out.bytes());
  for (std::size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i], numbers[i / 8 * 24 + 16 + i % 8]) << i;
}

/// What a low-rank map of three sites and its backward take, y beginning at column `left`.
emulation::Counts low_rank_counts(DType type, std::int64_t left) {
  const auto backend = make_cuda_backend({});
  const Tensor wide(*backend, 40, 88, type), u(*backend, 40, 24), d_u(*backend, 40, 24), p(*backend, 2, 640);
  const View y = wide.view().columns(left, left + 80);
  const std::vector<MemberRows> members = {{0, 3, 0}, {3, 40, 1}};
  const auto b = [&](std::int64_t rows) { return ClientMatrix{p.view().f32(), rows, 8, 640}; };
  const std::vector<LowRankSite> sites = {
      {0, 48, 0, b(48), b(48)}, {48, 64, 8, b(16), b(16)}, {64, 80, 16, b(16), b(16)}};
  const emulation::Counts before = emulation::counts();
  backend->low_rank_up(members, 1, u.view(), sites, y, Write::accumulate);
  backend->low_rank_up_backward(members, 1, u.view(), sites, y, d_u.view(), Write::accumulate);
  backend->synchronize();
  emulation::Counts counts = emulation::counts();
  counts.launches -= before.launches;
  counts.fragments -= before.fragments;
  return counts;
}

TEST_F(EmulatedDevice, LowRankMapsOfAllSitesAreOneLaunchOnTheMatrixUnits) {
  const emulation::Counts half = low_rank_counts(DType::bf16, 8);
  EXPECT_EQ(half.launches, 3u);
  EXPECT_GT(half.fragments, 0u);
  for (const emulation::Counts& other : {low_rank_counts(DType::bf16, 1), low_rank_counts(DType::f32, 8)}) {
    EXPECT_EQ(other.launches, 9u);
    EXPECT_EQ(other.fragments, 0u);
  }
}

TEST_F(EmulatedDevice, ProductsThatCublasHasNoAlgorithmFor) {
  for (const DType weights : {DType::f32, DType::bf16}) {
    const std::vector<float> expected = Step(weights).run(30);
    emulation::set_gemm_support(emulation::GemmSupport::none);
    const std::vector<float> found = Step(weights).run(30);
    emulation::set_gemm_support(emulation::GemmSupport::any_rows);
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      difference += std::pow(found[i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    EXPECT_LT(std::sqrt(difference / norm), 1e-5);
  }
}

TEST_F(EmulatedDevice, ProductsWhoseAlgorithmRefusesTheirRowsGetAnother) {
  for (const DType weights : {DType::f32, DType::bf16}) {
    const std::vector<float> expected = Step(weights).run(30);
    emulation::set_gemm_support(emulation::GemmSupport::chosen_rows);
    Step step(weights);
    EXPECT_EQ(step.run(30), expected);  // by cuBLASLt still: the own kernel would round in another order
    step.run(27);
    const std::size_t asked = emulation::counts().heuristics;
    step.run(30);
    step.run(27);
    EXPECT_EQ(emulation::counts().heuristics, asked);
    emulation::set_gemm_support(emulation::GemmSupport::any_rows);
  }
}

TEST_F(EmulatedDevice, TheRowsThatAlgorithmsAreChosenForCanBeGiven) {
  emulation::set_gemm_support(emulation::GemmSupport::chosen_rows);
  const auto asked = [](const char* rows) {
    if (rows != nullptr) setenv("FEDPDPO_CUDA_ROWS", rows, 1);
    const auto backend = make_cuda_backend({});
    unsetenv("FEDPDPO_CUDA_ROWS");
    const Tensor x(*backend, 30, 64), w(*backend, 64, 64), y(*backend, 30, 64);
    const std::size_t before = emulation::counts().heuristics;
    backend->linear(x.view(), w.view(), {}, y.view(), Write::overwrite);
    backend->synchronize();
    return emulation::counts().heuristics - before;
  };
  EXPECT_EQ(asked(nullptr), 2u);
  EXPECT_EQ(asked("30"), 1u);
}

TEST_F(EmulatedDevice, MoreMembersThanOneLaunchTakes) {
  const auto backend = make_cuda_backend({});
  constexpr int members = 300, cols = 5;
  std::vector<MemberRows> rows;
  for (int i = 0; i < members; ++i) rows.push_back({i, i + 1, i});
  Tensor x(*backend, members, cols), p(*backend, members, 3 * cols), y(*backend, members, 3),
      b(*backend, members, cols);
  std::vector<float> numbers(members * 3 * cols);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 17);
  backend->copy_to_device(x.view().data, numbers.data(), x.bytes());
  backend->copy_to_device(p.view().data, numbers.data(), p.bytes());
  backend->grouped_matmul(rows, Multiply::by_transpose, 1, x.view(), {p.view().f32(), 3, cols, 3 * cols}, y.view(),
                          Write::overwrite);
  backend->grouped_column_sum(rows, x.view(), {b.view().f32(), 1, cols, cols}, Write::overwrite);
  backend->grouped_add_bias(rows, {b.view().f32(), 1, cols, cols}, x.view());
  std::vector<float> found(members * 3), doubled(members * cols);
  backend->copy_to_host(found.data(), y.view().data, y.bytes());
  backend->copy_to_host(doubled.data(), x.view().data, x.bytes());
  for (int m = 0; m < members; ++m)
    for (int j = 0; j < 3; ++j) {
      float expected = 0;
      for (int c = 0; c < cols; ++c) expected += numbers[m * cols + c] * numbers[(m * 3 + j) * cols + c];
      ASSERT_EQ(found[m * 3 + j], expected) << m;
    }
  for (int i = 0; i < members * cols; ++i) ASSERT_EQ(doubled[i], 2 * numbers[i]);
}

TEST_F(EmulatedDevice, RecordedWorkIsCapturedOnceAndAgainWhenMemoryMoves) {
  const auto backend = make_cuda_backend({});
  Tensor x(*backend, 4, 4);
  auto y = std::make_unique<Tensor>(*backend, 4, 4);
  auto recording = backend->make_recording();
  int calls = 0;
  const auto times = [&](float value) {
    backend->fill(x.view(), value);
    backend->run(*recording, [&] {
      ++calls;
      backend->axpy(2.0f, x.view(), y->view(), Write::overwrite);
      backend->axpy(1.0f, x.view(), y->view(), Write::accumulate);
    });
    return backend->squared_norm(y->view());
  };
  const std::size_t before = emulation::counts().graph_launches;
  for (int i = 1; i <= 5; ++i) EXPECT_EQ(times(static_cast<float>(i)), 16 * 9 * i * i) << i;
  EXPECT_EQ(calls, 2);  // as it is, and to be captured
  EXPECT_EQ(emulation::counts().graph_launches - before, 4u);
  { Tensor passing(*backend, 64, 64); }  // younger than the graph: none of its business
  EXPECT_EQ(times(7), 16 * 9 * 49);
  EXPECT_EQ(calls, 2);
  y = std::make_unique<Tensor>(*backend, 4, 4);
  EXPECT_EQ(times(8), 16 * 9 * 64);
  EXPECT_EQ(times(9), 16 * 9 * 81);
  EXPECT_EQ(calls, 4);
}

TEST_F(EmulatedDevice, RecordedWorkStaysOnTheDevice) {
  const auto backend = make_cuda_backend({});
  Tensor x(*backend, 1, 4);
  for (const std::function<void()>& work :
       std::initializer_list<std::function<void()>>{[&] { backend->squared_norm(x.view()); },
                                                    [&] {
                                                      const float number = 1;
                                                      backend->copy_to_device(x.view().data, &number, 4);
                                                    },
                                                    [&] { Tensor(*backend, 1, 4); }}) {
    auto recording = backend->make_recording();
    backend->run(*recording, work);
    EXPECT_THROW(backend->run(*recording, work), std::logic_error);
    backend->fill(x.view(), 3);  // the backend goes on
    EXPECT_EQ(backend->squared_norm(x.view()), 36);
  }
  EXPECT_FALSE(make_cuda_backend({.check_outputs = true})->supports_recording());
}

}  // namespace
}  // namespace fedpdpo
