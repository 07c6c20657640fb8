// The LoRA aggregation error, by Gram matrices.
#include "fedpdpo/fed/aggregation_error.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// Deviations of one parameter from its average, scaled by sqrt(p): rows x cols in double.
void deviation(const Parameter& p, const WeightedLora& client, std::span<const float> average, double* out) {
  const double root = std::sqrt(client.share);
  for (std::size_t i = 0; i < p.size(); ++i)
    out[i] = root * (static_cast<double>(client.values[p.offset + i]) - static_cast<double>(average[p.offset + i]));
}

/// ||sum_i b_i a_i||^2 with b_i (n, r) and a_i (r, k), all clients behind one another.
double squared_norm_of_products(const std::vector<double>& b, const std::vector<double>& a, std::size_t clients,
                                std::size_t n, std::size_t k, std::size_t r) {
  const std::size_t width = clients * r;
  std::vector<double> gram_b(width * width, 0.0), gram_a(width * width, 0.0);
  std::vector<double> row(width);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t c = 0; c < clients; ++c)
      for (std::size_t j = 0; j < r; ++j) row[c * r + j] = b[(c * n + i) * r + j];
    for (std::size_t u = 0; u < width; ++u)
      for (std::size_t v = 0; v <= u; ++v) gram_b[u * width + v] += row[u] * row[v];
  }
  for (std::size_t u = 0; u < width; ++u)
    for (std::size_t v = 0; v <= u; ++v) {
      gram_b[v * width + u] = gram_b[u * width + v];
      double sum = 0;
      for (std::size_t j = 0; j < k; ++j) sum += a[u * k + j] * a[v * k + j];
      gram_a[u * width + v] = gram_a[v * width + u] = sum;
    }
  double total = 0;
  for (std::size_t i = 0; i < gram_a.size(); ++i) total += gram_a[i] * gram_b[i];
  return std::max(0.0, total);
}

}  // namespace

std::vector<double> lora_aggregation_error(const ParameterLayout& layout, std::int64_t num_layers,
                                           std::span<const WeightedLora> clients, std::span<const float> average) {
  check(layout.is_shared(Group::lora_a) && layout.is_shared(Group::lora_b), "the error needs both factors shared");
  std::vector<double> errors(static_cast<std::size_t>(num_layers), 0.0), deviations_a, deviations_b;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    double squared = 0;
    for (int block = 0; block < num_blocks; ++block) {
      for (const LoraSite& site : layout.sites(static_cast<int>(layer), static_cast<Block>(block))) {
        const Parameter& a = layout.parameters()[static_cast<std::size_t>(site.a)];
        const Parameter& b = layout.parameters()[static_cast<std::size_t>(site.b)];
        deviations_a.resize(clients.size() * a.size());
        deviations_b.resize(clients.size() * b.size());
        for (std::size_t c = 0; c < clients.size(); ++c) {
          deviation(a, clients[c], average, deviations_a.data() + c * a.size());
          deviation(b, clients[c], average, deviations_b.data() + c * b.size());
        }
        squared +=
            squared_norm_of_products(deviations_b, deviations_a, clients.size(), static_cast<std::size_t>(b.rows),
                                     static_cast<std::size_t>(a.cols), static_cast<std::size_t>(a.rows));
      }
    }
    errors[static_cast<std::size_t>(layer)] = std::sqrt(squared);
  }
  return errors;
}

std::vector<GatheredLora> gather_loras(const AggregationGroup& group, std::span<const Contribution> own,
                                       std::size_t size, bool to_all) {
  struct Head {
    std::int64_t client;
    double weight;
    double lora_weight;
  };
  const std::size_t record = sizeof(Head) + size * sizeof(float);
  std::vector<std::byte> bytes;
  for (const Contribution& c : own) {
    if (!c.finite) continue;
    const Head head{c.client, c.weight, static_cast<double>(c.lora_weight)};
    const std::size_t at = bytes.size();
    bytes.resize(at + record);
    std::memcpy(bytes.data() + at, &head, sizeof head);
    std::memcpy(bytes.data() + at + sizeof head, c.values.data(), c.values.size_bytes());
  }
  const auto all = to_all ? group.communicator().all_gather(bytes) : group.communicator().gather(bytes, 0);
  std::vector<GatheredLora> loras;
  double total = 0;
  for (const auto& part : all) {
    for (std::size_t at = 0; at < part.size(); at += record) {
      Head head{};
      std::memcpy(&head, part.data() + at, sizeof head);
      GatheredLora& lora = loras.emplace_back(GatheredLora{
          static_cast<int>(head.client), head.weight, static_cast<float>(head.lora_weight), std::vector<float>(size)});
      std::memcpy(lora.values.data(), part.data() + at + sizeof head, size * sizeof(float));
      total += head.weight;
    }
  }
  for (GatheredLora& lora : loras) lora.share /= total;
  // By client, so that sums do not depend on which rank hosts whom.
  std::sort(loras.begin(), loras.end(), [](const auto& a, const auto& b) { return a.client < b.client; });
  return loras;
}

std::vector<WeightedLora> weighted(std::span<const GatheredLora> loras) {
  std::vector<WeightedLora> views;
  for (const GatheredLora& lora : loras) views.push_back({lora.values, lora.share, lora.weight});
  return views;
}

std::vector<double> gather_aggregation_error(const AggregationGroup& group, const ParameterLayout& layout,
                                             std::int64_t num_layers, std::span<const Contribution> own,
                                             std::span<const float> average) {
  const std::vector<GatheredLora> loras = gather_loras(group, own, average.size(), false);
  if (group.communicator().rank() != 0) return {};
  return lora_aggregation_error(layout, num_layers, weighted(loras), average);
}

}  // namespace fedpdpo
