// Training of one combination.
#include "bench_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/error.hpp"
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

PackingOptions packing_of(const BenchSetting& setting) {
  return {.keep_last_rows = setting.layout.has(Group::reward), .share_prefix = true};  // Policy::packing
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
    const TrainerOptions options{o.loss, o.optimizer, num_pairs_, passes.micro_rows, 1, 1};
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

  /// The passes of one step, packed as the trainer does.
  template <class Visit>
  void for_passes(const Passes& passes, Visit visit) const {
    PackedBatch batch;
    const PackingOptions packing = packing_of(setting_);
    const auto cohort = static_cast<std::size_t>(passes.cohort);
    for (std::size_t begin = 0; begin < members_.size(); begin += cohort) {
      const std::size_t end = std::min(begin + cohort, members_.size());
      const int rows_each = std::max(1, passes.micro_rows / static_cast<int>(end - begin));
      std::vector<PairToPack> list;
      for (const ClientPair& pair : data_[begin].of(Split::train)) list.push_back(pair.pair);
      const std::vector<std::size_t> cuts = cut_by_rows(setting_.pairs, list, packing, rows_each);
      for (std::size_t pass = 0; pass + 1 < cuts.size(); ++pass) {
        std::vector<std::vector<PairToPack>> lists;
        std::vector<MemberPairs> members;
        for (std::size_t i = begin; i < end; ++i) {
          lists.emplace_back();
          for (std::size_t p = cuts[pass]; p < cuts[pass + 1]; ++p)
            lists.back().push_back(data_[i].of(Split::train)[p].pair);
        }
        for (std::size_t i = begin; i < end; ++i) members.push_back({states_[i].slot, lists[i - begin]});
        pack(setting_.pairs, members, packing, batch);
        visit(std::as_const(batch));
      }
    }
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
  Passes passes{std::min(o.cohort, clients), o.micro_rows};
  if (setting.backend.computes_on_host_memory()) return passes;
  if (!bench.micro_rows_given) passes.micro_rows = micro_rows;
  const int rows = packed_rows(setting.pairs.files[0], 0, packing_of(setting));
  if (!bench.cohort_given) passes.cohort = std::clamp(passes.micro_rows / rows, 1, clients);
  return passes;
}

/// Passes with half the rows; false where they cannot be smaller.
bool make_smaller(const BenchSetting& setting, int clients, Passes& passes) {
  const BenchOptions& bench = setting.line.bench;
  if (setting.backend.computes_on_host_memory() || bench.micro_rows_given) return false;
  const int rows = packed_rows(setting.pairs.files[0], 0, packing_of(setting));
  // A member has at least a pair in a pass.
  if (passes.micro_rows <= rows * (bench.cohort_given ? passes.cohort : 1)) return false;
  passes = first_passes(setting, clients, passes.micro_rows / 2);
  return true;
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

BenchResult run_bench_case(const BenchSetting& setting, int clients, int pairs, ProductRate& ceiling,
                           double best_rate) {
  const double limit = setting.line.bench.most_seconds;
  BenchResult result;
  const auto start_over = [&](const Passes& passes) {
    const Passes taken = passes;
    result = {};
    result.clients = clients;
    result.pairs = pairs;
    result.passes = taken;
  };
  start_over(first_passes(setting, clients, most_device_rows));
  const auto does_not_fit = [&](const char* why) {
    setting.backend.synchronize();
    if (make_smaller(setting, clients, result.passes)) return false;
    start_over(result.passes);
    result.left_out = fmt::format("does not fit: {}", why);
    result.does_not_fit = true;
    return true;
  };
  std::unique_ptr<Training> training;
  while (true) {
    try {
      if (!training) training = std::make_unique<Training>(setting, clients, pairs);
      start_over(result.passes);
      training->for_passes(result.passes, [&](const PackedBatch& batch) {
        const Operations here = count_operations(setting.config, setting.layout, batch);
        result.operations.forward += here.forward;
        result.operations.backward += here.backward;
        result.largest_pass = std::max(result.largest_pass, batch.num_rows());
      });
      result.tokens = static_cast<double>(clients) * pairs * static_cast<double>(setting.pairs.files[0].num_tokens(0));
      if (limit > 0 && best_rate > 0 && result.operations.total() / best_rate > limit) {
        result.left_out = fmt::format("would take about {:.0f} s a step", result.operations.total() / best_rate);
        return result;
      }
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
