// Training of one combination.
#include "bench_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/cohort.hpp"
#include "fedpdpo/train/local_trainer.hpp"

namespace fedpdpo {
namespace {

using Clock = std::chrono::steady_clock;

/// Packed rows of a pass on a device where memory allows them: beyond, its products gain nothing.
constexpr int most_device_rows = 1 << 15;
/// Rows with which the layers' own products are measured, at most.
constexpr int most_product_rows_on_host = 512, most_product_rows_on_device = 1 << 14;
/// Seconds that a measurement of products takes, and a repetition at least.
constexpr double measuring_seconds = 0.1;
constexpr double most_steps_a_repeat = 100;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The clients of a combination and what trains them. A pass buffer that does not fit leaves the clients as they are.
class Training {
 public:
  Training(const BenchSetting& setting, int clients, int pairs)
      : setting_(setting),
        num_pairs_(pairs),
        buffers_(setting.backend, setting.layout, clients),
        states_(static_cast<std::size_t>(clients)),
        data_(states_.size()) {
    for (std::size_t i = 0; i < states_.size(); ++i) {
      states_[i].client = data_[i].client = static_cast<int>(i);
      states_[i].slot = static_cast<std::int32_t>(i);
      for (int p = 0; p < pairs; ++p) {
        const auto index = static_cast<std::uint32_t>(i) * static_cast<std::uint32_t>(pairs);
        data_[i].pairs[0].push_back({{{0, index + static_cast<std::uint32_t>(p)}, false}, -100, -100});
      }
      members_.push_back({&states_[i], &data_[i], data_[i].of(Split::train)});
      const View values = buffers_.values(states_[i]);
      if (i == 0) {
        setting.backend.copy_to_device(values.data, setting.start.data(), setting.start.size() * sizeof(float));
      } else {
        setting.backend.copy(buffers_.values(states_[0]), values);
      }
    }
    for (int g = 0; g < num_groups; ++g)
      if (setting.layout.has(static_cast<Group>(g))) trainable_.push_back(static_cast<Group>(g));
  }

  /// The policy and trainer for these passes, on this backend; the ones before are given back first.
  void prepare(Backend& backend, const Passes& passes) {
    trainer_.reset();
    policy_.reset();
    cohort_ = passes.cohort;
    const RunOptions& o = setting_.line.run;
    policy_ = std::make_unique<Policy>(backend, setting_.config, setting_.weights, setting_.layout);
    const TrainerOptions options{o.loss, o.optimizer, num_pairs_, passes.micro_rows, 1, 1, o.graphs};
    const int slots = passes.cohort > 1 ? static_cast<int>(members_.size()) : 1;
    trainer_ =
        std::make_unique<LocalTrainer>(backend, setting_.pairs, setting_.layout, *policy_, buffers_, options, slots);
  }

  void step() {
    const auto cohort = static_cast<std::size_t>(cohort_);
    for (std::size_t begin = 0; begin < members_.size(); begin += cohort)
      trainer_->step(std::span(members_).subspan(begin, std::min(cohort, members_.size() - begin)), 1, trainable_, {});
    setting_.backend.synchronize();
    for (const ClientState& state : states_)
      if (!state.sums.finite) throw std::runtime_error("bench: a gradient is not finite");
  }

 private:
  const BenchSetting& setting_;
  int num_pairs_;
  ClientBuffers buffers_;
  std::vector<ClientState> states_;
  std::vector<ClientData> data_;
  std::vector<Member> members_;
  std::vector<Group> trainable_;
  int cohort_ = 1;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<LocalTrainer> trainer_;
};

/// Where neither is given, a device takes large passes of as many clients as fill them.
Passes first_passes(const BenchSetting& setting, int clients, int micro_rows) {
  const RunOptions& o = setting.line.run;
  const BenchOptions& bench = setting.line.bench;
  Passes passes{bench.cohort_given ? std::min(o.cohort, clients) : 1,
                bench.micro_rows_given ? o.micro_rows : default_micro_rows(setting.backend)};
  if (setting.backend.computes_on_host_memory()) return passes;
  if (!bench.micro_rows_given) passes.micro_rows = micro_rows;
  const int rows = setting.rows_of_pair;
  if (!bench.cohort_given) passes.cohort = std::clamp(passes.micro_rows / rows, 1, clients);
  return passes;
}

/// Passes with half the rows; false where they cannot be smaller.
bool make_smaller(const BenchSetting& setting, int clients, Passes& passes) {
  const BenchOptions& bench = setting.line.bench;
  if (setting.backend.computes_on_host_memory() || bench.micro_rows_given) return false;
  const int rows = setting.rows_of_pair;
  // A member has at least a pair in a pass.
  if (passes.micro_rows <= rows * (bench.cohort_given ? passes.cohort : 1)) return false;
  passes = first_passes(setting, clients, passes.micro_rows / 2);
  return true;
}

/// Rows of the largest pass, as LocalTrainer cuts them: the last cohort may be smaller, with more rows for each.
int largest_pass(const BenchSetting& setting, const BenchResult& result) {
  const auto rows = [&](int members) {
    const int each = result.passes.micro_rows / members;
    return members * std::clamp(each / setting.rows_of_pair, 1, result.pairs) * setting.rows_of_pair;
  };
  const int last = result.clients % result.passes.cohort;
  return std::max(rows(result.passes.cohort), last > 0 ? rows(last) : 0);
}

BenchResult without_figures(const BenchSetting& setting, int clients, int pairs, Passes passes) {
  BenchResult result;
  result.clients = clients;
  result.pairs = pairs;
  result.passes = passes;
  result.largest_pass = largest_pass(setting, result);
  const double all = static_cast<double>(clients) * pairs;
  result.operations = {setting.operations_of_pair.forward * all, setting.operations_of_pair.backward * all};
  result.tokens = static_cast<double>(setting.pairs.files[0].num_tokens(0)) * all;
  return result;
}

void measure(const BenchSetting& setting, Training& training, ProductRate& ceiling, BenchResult& result) {
  const BenchOptions& bench = setting.line.bench;
  Backend& backend = setting.backend;
  backend.reset_peak();
  training.prepare(backend, result.passes);
  double estimate = 0;
  for (int i = 0; i < bench.warmup; ++i) estimate = seconds_of([&] { training.step(); });
  result.memory_bytes = backend.allocated().peak - ceiling.bytes();

  const int most_rows = backend.computes_on_host_memory() ? most_product_rows_on_host : most_product_rows_on_device;
  ProductRate layers = ProductRate::of_layer(backend, setting.weights, std::min(most_rows, result.largest_pass));
  const auto steps = static_cast<int>(std::clamp(std::ceil(measuring_seconds / estimate), 1.0, most_steps_a_repeat));
  int repeats = bench.repeats;
  if (bench.most_seconds > 0)
    repeats = static_cast<int>(std::clamp(bench.most_seconds / (estimate * steps), 1.0, 1.0 * repeats));
  for (int i = 0; i < repeats; ++i) {
    result.ceiling_rates.push_back(ceiling.measure(measuring_seconds));
    result.layer_rates.push_back(layers.measure(measuring_seconds));
    result.seconds.push_back(seconds_of([&] {
                               for (int s = 0; s < steps; ++s) training.step();
                             }) /
                             steps);
  }
  result.steps_a_repeat = steps;
  if (!bench.profile) return;
  const std::unique_ptr<Backend> timed = make_timed_backend(backend, result.profile);
  training.prepare(*timed, result.passes);
  training.step();
  result.profile.clear();
  training.step();
}

}  // namespace

double median(std::vector<double> values) {
  check(!values.empty(), "median of nothing");
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

double BenchResult::step_seconds() const { return median(seconds); }
double BenchResult::share_of_ceiling() const { return rate() / median(ceiling_rates); }
double BenchResult::share_of_layers() const { return rate() / median(layer_rates); }

BenchResult count_bench_case(const BenchSetting& setting, int clients, int pairs, OperationTimes& counted) {
  BenchResult result = without_figures(setting, clients, pairs, first_passes(setting, clients, most_device_rows));
  Training training(setting, clients, pairs);
  training.prepare(setting.backend, result.passes);
  counted.clear();
  training.step();
  result.profile = counted;
  return result;
}

BenchResult run_bench_case(const BenchSetting& setting, int clients, int pairs, ProductRate& ceiling,
                           double best_rate) {
  BenchResult result;
  const auto start_over = [&](Passes passes) { result = without_figures(setting, clients, pairs, passes); };
  start_over(first_passes(setting, clients, most_device_rows));
  const double limit = setting.line.bench.most_seconds;
  const double expected = best_rate > 0 ? result.operations.total() / best_rate : 0;
  if (limit > 0 && expected > limit) {
    result.left_out = fmt::format("would take about {:.0f} s a step", std::ceil(expected));
    return result;
  }
  const auto does_not_fit = [&](const char* why) {
    setting.backend.synchronize();
    Passes passes = result.passes;
    const bool smaller = make_smaller(setting, clients, passes);
    start_over(passes);
    if (smaller) return false;
    result.left_out = fmt::format("does not fit: {}", why);
    result.does_not_fit = true;
    return true;
  };
  std::unique_ptr<Training> training;
  while (true) {
    try {
      if (!training) training = std::make_unique<Training>(setting, clients, pairs);
      measure(setting, *training, ceiling, result);
      return result;
    } catch (const OutOfDeviceMemory& error) {
      if (does_not_fit(error.what())) return result;
    } catch (const std::bad_alloc&) {
      if (does_not_fit("out of the host's memory")) return result;
    }
  }
}

}  // namespace fedpdpo
