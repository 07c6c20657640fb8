// The table and the JSON file of a bench.
#include "bench_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace fedpdpo {
namespace {

/// The driver's own file; empty where there is none. "NVRM version: ... Kernel Module  580.159.04  ..."
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;)
    if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos) return word;
  return {};
}

nlohmann::json result_json(const BenchResult& r) {
  nlohmann::json json = {{"clients", r.clients},
                         {"pairs", r.pairs},
                         {"cohort", r.passes.cohort},
                         {"micro_rows", r.passes.micro_rows},
                         {"rows_of_largest_pass", r.largest_pass},
                         {"left_out", r.left_out}};
  for (const auto& [operation, time] : r.profile)
    json["profile"][operation] = {
        {"seconds", time.seconds}, {"calls", time.calls}, {"bytes", time.bytes}, {"operations", time.operations}};
  if (r.seconds.empty()) return json;
  json["operations_forward"] = r.operations.forward;
  json["operations_backward"] = r.operations.backward;
  json["memory_bytes"] = r.memory_bytes;
  json["steps_a_repeat"] = r.steps_a_repeat;
  json["seconds"] = r.seconds;
  json["ceiling_rates"] = r.ceiling_rates;
  json["layer_rates"] = r.layer_rates;
  json["seconds_median"] = r.step_seconds();
  json["pairs_per_second"] = r.pairs_per_second();
  json["operations_per_second"] = r.rate();
  json["share_of_ceiling"] = r.share_of_ceiling();
  json["share_of_layers"] = r.share_of_layers();
  return json;
}

std::string comma_separated(const std::vector<int>& numbers) {
  std::string text;
  for (int number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

}  // namespace

std::string bench_heading(const BenchFacts& f) {
  const RunOptions& o = f.line.run;
  const BenchOptions& bench = f.line.bench;
  const std::string above = fmt::format(
      "{} {} on {}, {}; {:.3f} M trainables a client\n"
      "pairs of {} tokens, {} packed rows and {} targets each; a step of a client: forward, backward, AdamW\n",
      o.method, f.model, f.backend.description(), o.precision == Precision::bf16 ? "bf16" : "fp32",
      static_cast<double>(f.layout.size()) / 1e6, bench.tokens, f.rows, f.targets);
  const std::string cases = fmt::format("{:>7} {:>6} {:>7} {:>6}", "clients", "pairs", "cohort", "rows");
  if (bench.count)
    return above + "counted, not measured: bytes of operations' arguments, arithmetic of products and attention\n" +
           cases + "\n";
  return fmt::format(
      "{}ceiling: {}; layers: their own products with a pass's rows; all measured in between, medians of up to {}\n"
      "{} {:>10} {:>10} {:>11} {:>10} {:>8} {:>8} {:>11}\n",
      above, f.ceiling, bench.repeats, cases, "s/step", "pairs/s", "tokens/s", "TFLOP/s", "ceiling", "layers",
      "memory");
}

std::string bench_line(const BenchResult& r) {
  const std::string what = fmt::format("{:>7} {:>6} {:>7} {:>6} ", r.clients, r.pairs, r.passes.cohort, r.largest_pass);
  if (r.seconds.empty()) return fmt::format("{}{}\n", what, r.left_out);
  const double tokens = r.tokens / r.step_seconds();
  return fmt::format("{}{:>10.5f} {:>10.3f} {:>11.1f} {:>10.4f} {:>6.1f} % {:>6.1f} % {:>11}\n", what, r.step_seconds(),
                     r.pairs_per_second(), tokens, r.rate() / 1e12, 100 * r.share_of_ceiling(),
                     100 * r.share_of_layers(), bytes_text(static_cast<double>(r.memory_bytes)));
}

std::string bench_profile(const BenchResult& r) {
  const bool timed = !r.seconds.empty();
  std::vector<std::pair<std::string, OperationTime>> times(r.profile.begin(), r.profile.end());
  std::stable_sort(times.begin(), times.end(), [timed](const auto& a, const auto& b) {
    return timed ? a.second.seconds > b.second.seconds : a.second.bytes > b.second.bytes;
  });
  OperationTime sum;
  for (const auto& [operation, time] : times) {
    sum.seconds += time.seconds;
    // What goes to and from the host takes another way.
    if (!operation.starts_with("copy_to_")) sum.bytes += time.bytes;
    sum.operations += time.operations;
  }
  const auto cost = [](const OperationTime& t) {
    return fmt::format("{:>10.2f} MB {:>10.3f} GFLOP", t.bytes / 1e6, t.operations / 1e9);
  };
  std::string text = timed ? fmt::format("    {:.5f} s in operations, each waited for (a step takes {:.5f} s)\n",
                                         sum.seconds, r.step_seconds())
                           : fmt::format("    {:<46} {}\n", "a step", cost(sum));
  for (const auto& [operation, time] : times) {
    text += fmt::format("    {:<32} {:>7} calls {}", operation, time.calls, cost(time));
    if (timed)
      text += fmt::format(" {:>10.5f} s {:>5.1f} % {:>8.1f} GB/s {:>7.2f} TFLOP/s", time.seconds,
                          100 * time.seconds / sum.seconds, time.bytes / 1e9 / time.seconds,
                          time.operations / 1e12 / time.seconds);
    text += "\n";
  }
  return text;
}

std::string bench_json(const BenchFacts& f, const std::vector<BenchResult>& results) {
  const ModelConfig& c = f.config;
  const BenchOptions& bench = f.line.bench;
  nlohmann::json json = {{"format", "fedpdpo-bench"},
                         {"version", 1},
                         {"program", version_line()},
                         {"git_hash", FEDPDPO_GIT_HASH},
                         {"command_line", f.line.text},
                         {"device", f.backend.name()},
                         {"device_description", f.backend.description()},
                         {"driver", driver_version()},
                         {"cuda_toolkit", FEDPDPO_CUDA_TOOLKIT},
                         {"options", describe(f.line.run)},
                         {"setup_seconds", f.setup_seconds},
                         {"ceiling", f.ceiling},
                         {"rows_of_a_pair", f.rows},
                         {"targets_of_a_pair", f.targets},
                         {"trainables", f.layout.size()}};
  json["bench"] = {{"tokens", bench.tokens},
                   {"clients", comma_separated(bench.clients)},
                   {"pairs", comma_separated(bench.pairs)},
                   {"repeats", bench.repeats},
                   {"warmup", bench.warmup},
                   {"most_seconds", bench.most_seconds}};
  json["model"] = {{"name", f.model},
                   {"family", c.family},
                   {"vocab_size", c.vocab_size},
                   {"hidden_size", c.hidden_size},
                   {"intermediate_size", c.intermediate_size},
                   {"num_layers", c.num_layers},
                   {"num_heads", c.num_heads},
                   {"num_kv_heads", c.num_kv_heads},
                   {"head_dim", c.head_dim},
                   {"max_positions", c.max_positions},
                   {"tied_head", c.tied_head}};
  json["results"] = nlohmann::json::array();
  for (const BenchResult& r : results) json["results"].push_back(result_json(r));
  return json.dump(1) + "\n";
}

}  // namespace fedpdpo
