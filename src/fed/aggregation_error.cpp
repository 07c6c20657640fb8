// The LoRA aggregation error: a layer is gathered on one rank, the next on the next, and computed by its backend.
#include "fedpdpo/fed/aggregation_error.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/model/trained_model.hpp"

namespace fedpdpo {
namespace {

/// Rows of a site's product at a time: at most this many elements of it are ever stored.
constexpr std::int64_t most_elements = std::int64_t{1} << 24;

const Parameter& parameter(const ParameterLayout& layout, int index) {
  return layout.parameters()[static_cast<std::size_t>(index)];
}

/// visit(site) for a layer's LoRA sites, in the order in which layer_slice lists their factors.
template <class Visit>
void for_sites(const ParameterLayout& layout, int layer, Visit visit) {
  for (int block = 0; block < num_blocks; ++block)
    for (const LoraSite& site : layout.sites(layer, static_cast<Block>(block))) visit(site);
}

/// Deviations of the clients' (rows, cols) from the average, times `share` where it is asked for, into columns or rows
/// of `out` one client after another: element (i, j) of client c at out[i * stride_i + c * stride_c + j].
struct Deviations {
  std::size_t stride_i, stride_c;
  bool weighted;

  void write(std::span<const WeightedLora> clients, std::span<const float> average, std::size_t offset,
             std::size_t rows, std::size_t cols, float* out) const {
    for (std::size_t c = 0; c < clients.size(); ++c) {
      const double factor = weighted ? clients[c].share : 1;
      for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < cols; ++j) {
          const std::size_t at = offset + i * cols + j;
          out[i * stride_i + c * stride_c + j] = static_cast<float>(
              factor * (static_cast<double>(clients[c].values[at]) - static_cast<double>(average[at])));
        }
    }
  }
};

/// ||sum_i p_i (B_i - B)(A_i - A)||^2 of a site whose factors A (r, k) and B (n, r) begin at these numbers.
double squared_error(Backend& backend, std::span<const WeightedLora> clients, std::span<const float> average,
                     std::size_t a_begin, std::size_t b_begin, std::int64_t n, std::int64_t k, std::int64_t r) {
  const auto width = static_cast<std::int64_t>(clients.size()) * r;
  const auto ur = static_cast<std::size_t>(r), uk = static_cast<std::size_t>(k), uw = static_cast<std::size_t>(width);
  const std::int64_t rows_at_once = std::min(n, std::max<std::int64_t>(1, most_elements / std::max(k, width)));
  std::vector<float> host(static_cast<std::size_t>(std::max(width * k, rows_at_once * width)));
  const Tensor right(backend, width, k), left(backend, rows_at_once, width), product(backend, rows_at_once, k);
  Deviations{uk, ur * uk, false}.write(clients, average, a_begin, ur, uk, host.data());
  backend.copy_to_device(right.view().data, host.data(), static_cast<std::size_t>(width * k) * sizeof(float));
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += rows_at_once) {
    const std::int64_t rows = std::min(rows_at_once, n - begin);
    Deviations{uw, ur, true}.write(clients, average, b_begin + static_cast<std::size_t>(begin * r),
                                   static_cast<std::size_t>(rows), ur, host.data());
    backend.copy_to_device(left.view().data, host.data(), static_cast<std::size_t>(rows * width) * sizeof(float));
    backend.linear_backward(left.first(rows), right.view(), product.first(rows), Write::overwrite);
    const ConstView whole{product.view().data, 1, rows * k, rows * k, DType::f32};
    double squared = 0;
    backend.squared_norms(std::span(&whole, 1), std::span(&squared, 1));
    total += squared;
  }
  return total;
}

}  // namespace

std::vector<float> layer_slice(const ParameterLayout& layout, int layer, std::span<const float> shared) {
  std::vector<float> slice;
  for_sites(layout, layer, [&](const LoraSite& site) {
    for (const int index : {site.a, site.b}) {
      const std::span<const float> part = part_of(shared, parameter(layout, index));
      slice.insert(slice.end(), part.begin(), part.end());
    }
  });
  return slice;
}

double lora_aggregation_error(Backend& backend, const ParameterLayout& layout, int layer,
                              std::span<const WeightedLora> clients, std::span<const float> average) {
  check(layout.is_shared(Group::lora_a) && layout.is_shared(Group::lora_b), "the error needs both factors shared");
  double squared = 0;
  std::size_t at = 0;
  for_sites(layout, layer, [&](const LoraSite& site) {
    const Parameter &a = parameter(layout, site.a), &b = parameter(layout, site.b);
    squared += squared_error(backend, clients, average, at, at + a.size(), b.rows, a.cols, a.rows);
    at += a.size() + b.size();
  });
  check(at == average.size(), "an average of another layer");
  return std::sqrt(squared);
}

namespace {

struct Head {
  std::int64_t client;
  double weight;
  double lora_weight;
};

/// The counted contributions' `slice`, all of one length, as bytes.
template <class Slice>
std::vector<std::byte> pack_contributions(std::span<const Contribution> own, Slice slice) {
  std::vector<std::byte> bytes;
  for (const Contribution& c : own) {
    if (!c.finite) continue;
    const Head head{c.client, c.weight, static_cast<double>(c.lora_weight)};
    const auto& values = slice(c);
    const std::size_t at = bytes.size();
    bytes.resize(at + sizeof head + values.size() * sizeof(float));
    std::memcpy(bytes.data() + at, &head, sizeof head);
    std::memcpy(bytes.data() + at + sizeof head, values.data(), values.size() * sizeof(float));
  }
  return bytes;
}

/// What pack_contributions made on every rank, each of `size` numbers.
std::vector<GatheredLora> unpack_contributions(const std::vector<std::vector<std::byte>>& all, std::size_t size) {
  const std::size_t record = sizeof(Head) + size * sizeof(float);
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

}  // namespace

std::vector<GatheredLora> gather_loras(const AggregationGroup& group, std::span<const Contribution> own,
                                       std::size_t size) {
  const auto bytes = pack_contributions(own, [](const Contribution& c) { return c.values; });
  return unpack_contributions(group.communicator().all_gather(bytes), size);
}

std::vector<WeightedLora> weighted(std::span<const GatheredLora> loras) {
  std::vector<WeightedLora> views;
  for (const GatheredLora& lora : loras) views.push_back({lora.values, lora.share, lora.weight});
  return views;
}

std::vector<double> gather_aggregation_error(Backend& backend, const AggregationGroup& group,
                                             const ParameterLayout& layout, int num_layers,
                                             std::span<const Contribution> own, std::span<const float> average) {
  const Communicator& ranks = group.communicator();
  std::vector<double> errors(static_cast<std::size_t>(num_layers), 0.0);
  // As many layers as ranks are gathered, each on one of them, before any is computed: so they compute side by side.
  for (int base = layout.lowest_lora_layer(); base < num_layers; base += ranks.size()) {
    std::vector<std::vector<std::byte>> mine;
    for (int root = 0; root < ranks.size() && base + root < num_layers; ++root) {
      const auto bytes =
          pack_contributions(own, [&](const Contribution& c) { return layer_slice(layout, base + root, c.values); });
      auto gathered = ranks.gather(bytes, root);
      if (ranks.rank() == root) mine = std::move(gathered);
    }
    const int layer = base + ranks.rank();
    if (layer >= num_layers) continue;
    const std::vector<float> slice = layer_slice(layout, layer, average);
    const std::vector<GatheredLora> loras = unpack_contributions(mine, slice.size());
    errors[static_cast<std::size_t>(layer)] = lora_aggregation_error(backend, layout, layer, weighted(loras), slice);
  }
  ranks.sum(errors);  // exact: a layer's error is not zero on one rank alone
  return ranks.rank() == 0 ? errors : std::vector<double>{};
}

}  // namespace fedpdpo
