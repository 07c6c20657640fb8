// fedpdpo plan and fedpdpo partition: what a run would do, and who would own what, without doing it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/compression.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "product_rate.hpp"

namespace fedpdpo {
namespace {

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// (query, key) pairs, targets and rows of a typical pair.
struct TypicalPair {
  double rows = 0, targets = 0, attended = 0;
};

TypicalPair typical_pair(const RunInput& input, const PackingOptions& packing) {
  std::vector<double> rows, targets, attended;
  PackedBatch batch;
  for (const ClientShare& client : input.partition.clients) {
    for (std::size_t i = 0; i < std::min<std::size_t>(64, client.pairs[0].size()); ++i) {
      const PairToPack one{client.pairs[0][i], false};
      const MemberPairs member{0, std::span(&one, 1)};
      pack(input.pairs, std::span(&member, 1), packing, batch);
      rows.push_back(batch.num_rows());
      targets.push_back(batch.num_targets());
      double sum = 0;
      for (const Segment& s : batch.segments)
        sum += (s.end - s.begin) * (s.context_end - s.context_begin + (s.end - s.begin + 1) / 2.0);
      attended.push_back(sum);
    }
  }
  return {median(rows), median(targets), median(attended)};
}

/// Bytes up and down of a participant in the first round, of one group.
std::pair<double, double> exchanged_bytes(const RunInput& input, const RunOptions& o, const FederatedMethod& method,
                                          const ParameterLayout& layout) {
  std::vector<int> clients(static_cast<std::size_t>(o.partition.num_clients - o.partition.num_new_clients));
  std::iota(clients.begin(), clients.end(), 0);
  const std::size_t drawn = draw_participants(clients, o.participation, o.seed(), 1, 0).size();
  const TrafficRound round{.layout = layout,
                           .num_participants = static_cast<int>(drawn),
                           .rank_shares = static_cast<double>(drawn),
                           .residual = method.moves_backbone() ? residual_size(layout, input.model.config()) : 0};
  const Traffic traffic = method.traffic(round);
  const std::vector<float> x(layout.shared_size());
  std::vector<float> y(x), memory(x);
  const std::size_t compressed = compress_update(o.compression, layout.shared_blocks(), x, y, memory).bytes;
  return {traffic.bytes_up(layout.shared_size(), compressed), 4.0 * static_cast<double>(traffic.down)};
}

/// How the fullest rank would train its clients, and the memory that it takes.
void print_cohort(const CohortFacts& facts, const CohortChoice& choice) {
  const auto bytes = [](std::size_t n) { return bytes_text(static_cast<double>(n)); };
  const auto resident = static_cast<std::size_t>(choice.resident);
  const std::string cohort =
      choice.cohort > 1 ? fmt::format("up to {} clients in lock-step", choice.cohort) : "one client at a time";
  fmt::print("cohort        {}, {} rows a pass, {} of {} clients' state {} on the fullest rank\n", cohort,
             choice.micro_rows, choice.resident, facts.num_clients,
             facts.free_bytes ? "on the device at once" : "in place at once");
  fmt::print(
      "memory        {} on the fullest rank: {} clients {}, activations for {} rows {}, gradients {}, others {}\n",
      bytes(predicted_bytes(facts, choice)), resident, bytes(resident * facts.state_bytes), buffer_rows(facts, choice),
      bytes(facts.pass_bytes(buffer_rows(facts, choice))),
      bytes(facts.gradient_bytes * (choice.cohort > 1 ? resident : 1)), bytes(facts.other_bytes));
  if (facts.free_bytes) fmt::print("              {} are free on its device\n", bytes(*facts.free_bytes));
  if (choice.resident < facts.num_clients)
    fmt::print("              {} of host memory for the clients that are swapped\n",
               bytes(facts.state_bytes * static_cast<std::size_t>(facts.num_clients)));
}

/// The largest sum over a rank's clients.
template <class OfClient>
double of_slowest_rank(const Placement& placement, int num_ranks, const OfClient& of_client) {
  double most = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    double sum = 0;
    for (const int client : placement.clients_of(rank)) sum += of_client(static_cast<std::size_t>(client));
    most = std::max(most, sum);
  }
  return most;
}

/// Seconds at a rate of products: training goes forward and backward, evaluation forward only. All ranks wait for the
/// slowest one.
void print_time(const RunWork& work, const RunOptions& o, const Placement& placement, int num_ranks,
                const TypicalPair& pair, const Operations& per_pair, double rate) {
  const double train_row = per_pair.total() / 2 / pair.rows / rate, row = per_pair.forward / pair.rows / rate;
  const auto& evaluations = work.evaluations;
  const auto rows = [&](EvaluatedPairs ClientEvaluations::*part) {
    return of_slowest_rank(placement, num_ranks, [&](std::size_t client) { return (evaluations[client].*part).rows; });
  };
  EvaluatedPairs start, rounds, end;
  for (const ClientEvaluations& client : evaluations) {
    start += client.start;
    rounds += client.rounds;
    end += client.end;
  }
  const double training =
      train_row * of_slowest_rank(placement, num_ranks, [&](std::size_t client) { return work.training[client]; });
  const double in_rounds = row * rows(&ClientEvaluations::rounds);
  const double evaluation = in_rounds + row * (rows(&ClientEvaluations::start) + rows(&ClientEvaluations::end));
  fmt::print(
      "time          about {:.1f} s a round of training at the {:.0f} GFLOP/s measured now on a rank, {:.0f} s in "
      "all\n",
      training, rate / 1e9, training * o.rounds);
  fmt::print(
      "evaluation    {:.0f} pairs at the start, {:.0f} in {} round{} ({}), {:.0f} after the last: {:.0f} in all\n",
      start.pairs, rounds.pairs, work.evaluated_rounds, work.evaluated_rounds == 1 ? "" : "s",
      work.points == 1 ? "each once" : "each before and after averaging", end.pairs,
      start.pairs + rounds.pairs + end.pairs);
  fmt::print("              about {:.1f} s in each of these rounds, {:.0f} s in all\n",
             in_rounds / std::max(1, work.evaluated_rounds), evaluation);
  fmt::print("both          about {:.0f} s at that rate, without the reference pass\n",
             training * o.rounds + evaluation);
}

}  // namespace

int plan_command(const Communicator& world, const CommandLine& line) {
  const RunOptions& o = line.run;
  const RunInput input = read_input(world, o);
  const std::unique_ptr<FederatedMethod> method = find_method(o.method)->make(o);
  const ModelConfig& config = input.model.config();
  const std::unique_ptr<Backend> backend = make_backend(world, o);
  const Backbone backbone = load_backbone(world, *backend, input.model, weight_type(o));
  const ParameterLayout layout(config, o.adapter, method->shared_groups());
  const std::vector<double> costs = client_costs(input, o, *method);
  const Placement placement = place_clients(costs, world.size());
  Policy policy(*backend, config, backbone.weights, layout);
  const double rate = ProductRate::of_layer(*backend, backbone.weights, 256).measure(0.2);
  const int sharing = ranks_on_device(world, *backend);
  if (world.rank() != 0) return 0;

  const TypicalPair pair = typical_pair(input, policy.packing());
  const Operations per_pair = count_operations(config, layout, pair.rows, pair.targets, pair.attended);
  std::vector<int> fullest;  // clients of the rank that hosts most
  for (int rank = 0; rank < world.size(); ++rank)
    if (std::vector<int> clients = placement.clients_of(rank); clients.size() > fullest.size()) fullest = clients;
  const CohortFacts facts =
      cohort_facts({*backend, policy, layout, config, *method, o, input.pairs, input.partition}, fullest, sharing);
  const CohortChoice choice = choose_cohort(CohortRequest::of(o), facts);
  fmt::print("{}: {} clients, {} rounds of {} steps of {} pairs, on {} rank{}\n", o.method,
             input.partition.clients.size(), o.rounds, o.steps, o.batch, world.size(), world.size() == 1 ? "" : "s");
  fmt::print("model         {} ({} layers, d {}, vocabulary {}), {:.1f} M frozen parameters, {} a node as {}\n",
             o.model.filename().string(), config.num_layers, config.hidden_size, config.vocab_size,
             static_cast<double>(config.layer_parameters() + config.vocab_size * config.hidden_size) / 1e6,
             bytes_text(static_cast<double>(backbone.memory.bytes().size())),
             o.precision == Precision::bf16 ? "bf16" : "fp32");
  fmt::print("trainables    {:.3f} M a client ({:.3f} M shared), {} with Adam's moments\n",
             static_cast<double>(layout.size()) / 1e6, static_cast<double>(layout.shared_size()) / 1e6,
             bytes_text(static_cast<double>(facts.state_bytes)));
  print_cohort(facts, choice);
  const auto [up, down] = exchanged_bytes(input, o, *method, layout);
  fmt::print("exchange      {} up and {} down per participant in the first round\n", bytes_text(up), bytes_text(down));
  fmt::print("a pair        {:.0f} packed rows, {:.0f} targets (median), {:.2f} GFLOP forward and backward\n",
             pair.rows, pair.targets, per_pair.total() / 1e9);
  print_time(run_work(input, o, *method, layout.shared_size()), o, placement, world.size(), pair, per_pair, rate);
  fmt::print("balance       imbalance {:.3f} (slowest rank over the mean)\n", placement.imbalance());
  for (int rank = 0; rank < world.size(); ++rank) {
    std::string names;
    for (int client : placement.clients_of(rank)) names += fmt::format(" {}", client);
    const double share = placement.rank_cost[static_cast<std::size_t>(rank)] /
                         std::max(1e-300, std::accumulate(costs.begin(), costs.end(), 0.0));
    fmt::print("  rank {:<3} {:5.1f} % of the work, clients{}\n", rank, 100 * share, names);
  }
  return 0;
}

int partition_command(const Communicator& world, const CommandLine& line) {
  const PartitionInput input = read_pairs_and_partition(world, line.run);
  if (world.rank() != 0) return 0;
  const std::vector<std::int64_t> histogram = input.partition.label_histogram(input.pairs);
  const std::size_t labels = input.pairs.label_names.size();
  fmt::print("{:<24} {:>7} {:>10} {:>6}  {:<8} categories (share of its train pairs)\n", "client", "train",
             "validation", "test", "flipped");
  for (std::size_t c = 0; c < input.partition.clients.size(); ++c) {
    const ClientShare& client = input.partition.clients[c];
    std::vector<std::pair<std::int64_t, std::size_t>> counts;
    for (std::size_t l = 0; l < labels; ++l) counts.push_back({histogram[(c * 3 + 0) * labels + l], l});
    std::sort(counts.begin(), counts.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    std::string top;
    for (std::size_t i = 0; i < std::min<std::size_t>(4, counts.size()) && counts[i].first > 0; ++i)
      top += fmt::format("{}{} {:.0f} %", i ? ", " : "", input.pairs.label_names[counts[i].second],
                         100.0 * static_cast<double>(counts[i].first) / static_cast<double>(client.pairs[0].size()));
    fmt::print("{:<24} {:>7} {:>10} {:>6}  {:<8} {}\n", client.name, client.pairs[0].size(), client.pairs[1].size(),
               client.pairs[2].size(), client.flipped ? "yes" : "no", top);
  }
  if (input.partition.num_redraws > 0)
    fmt::print("redrawn {} times for the least sizes\n", input.partition.num_redraws);
  return 0;
}

}  // namespace fedpdpo
