// Inner products of directions over all ranks, and average linkage.
#include "fedpdpo/fed/grouping.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

namespace {

/// In eight interleaved sums, which vectorise.
double product(std::span<const float> x, std::span<const float> y) {
  constexpr std::size_t lanes = 8;
  double sums[lanes] = {};
  std::size_t k = 0;
  for (; k + lanes <= x.size(); k += lanes)
    for (std::size_t l = 0; l < lanes; ++l) sums[l] += static_cast<double>(x[k + l]) * static_cast<double>(y[k + l]);
  for (; k < x.size(); ++k) sums[k % lanes] += static_cast<double>(x[k]) * static_cast<double>(y[k]);
  double sum = 0;
  for (double part : sums) sum += part;
  return sum;
}

}  // namespace

std::vector<double> direction_products(const Communicator& world, int num_clients, std::span<const ClientDirection> own,
                                       std::size_t size) {
  constexpr std::size_t piece = std::size_t{1} << 16;
  const auto n = static_cast<std::size_t>(num_clients);
  std::vector<double> products(world.rank() == 0 ? n * n : 0, 0.0);
  for (std::size_t begin = 0; begin < size; begin += piece) {
    const std::size_t length = std::min(piece, size - begin);
    const std::size_t record = sizeof(std::int64_t) + length * sizeof(float);
    std::vector<std::byte> bytes(own.size() * record);
    for (std::size_t i = 0; i < own.size(); ++i) {
      check(own[i].values.size() == size, "directions of one size");
      const std::int64_t client = own[i].client;
      std::memcpy(bytes.data() + i * record, &client, sizeof client);
      std::memcpy(bytes.data() + i * record + sizeof client, own[i].values.data() + begin, length * sizeof(float));
    }
    const auto all = world.gather(bytes, 0);
    if (world.rank() != 0) continue;
    std::vector<std::vector<float>> rows(n);
    for (const auto& part : all)
      for (std::size_t at = 0; at < part.size(); at += record) {
        std::int64_t client = 0;
        std::memcpy(&client, part.data() + at, sizeof client);
        std::vector<float>& row = rows[static_cast<std::size_t>(client)];
        row.resize(length);
        std::memcpy(row.data(), part.data() + at + sizeof client, length * sizeof(float));
      }
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j <= i; ++j) {
        if (rows[i].empty() || rows[j].empty()) continue;
        products[i * n + j] += product(rows[i], rows[j]);
      }
  }
  for (std::size_t i = 0; i < n && !products.empty(); ++i)
    for (std::size_t j = 0; j < i; ++j) products[j * n + i] = products[i * n + j];
  return products;
}

namespace {

/// Groups of clients with the sums of the cosines between any two of them, and within each.
class Merging {
 public:
  Merging(std::span<const double> products, std::size_t num_clients, const std::vector<int>& clients) {
    const auto at = [&](int i, int j) {
      return products[static_cast<std::size_t>(i) * num_clients + static_cast<std::size_t>(j)];
    };
    double squares = 0, pairs = 0;
    for (int i : clients) {
      std::vector<double>& row = sums_.emplace_back();
      for (int j : clients) row.push_back(i == j ? 0 : at(i, j) / std::sqrt(at(i, i) * at(j, j)));
      for (std::size_t j = 0; j + 1 < sums_.size(); ++j, ++pairs) squares += row[j] * row[j];
      groups.push_back({i});
    }
    deviation_ = std::sqrt(squares / std::max(1.0, pairs));
  }

  /// The two groups with the highest mean cosine between them, the first such among equals.
  std::pair<std::size_t, std::size_t> closest() const {
    std::pair<std::size_t, std::size_t> best{0, 1};
    for (std::size_t a = 0; a < groups.size(); ++a)
      for (std::size_t b = a + 1; b < groups.size(); ++b)
        if (between(a, b) > between(best.first, best.second)) best = {a, b};
    return best;
  }

  bool conflict(std::size_t a, std::size_t b, double errors) const {
    const double pairs_within = pairs(a) + pairs(b);
    const double within = pairs_within > 0 ? (sums_[a][a] + sums_[b][b]) / pairs_within : 0;
    const double error = deviation_ / std::sqrt(size(a) * size(b));
    return between(a, b) < -0.5 * within && between(a, b) < -errors * error;
  }

  void merge(std::size_t a, std::size_t b) {
    sums_[a][a] += sums_[b][b] + sums_[a][b];
    for (std::size_t c = 0; c < groups.size(); ++c)
      if (c != a && c != b) sums_[c][a] = sums_[a][c] += sums_[b][c];
    groups[a].insert(groups[a].end(), groups[b].begin(), groups[b].end());
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(b));
    sums_.erase(sums_.begin() + static_cast<std::ptrdiff_t>(b));
    for (auto& row : sums_) row.erase(row.begin() + static_cast<std::ptrdiff_t>(b));
  }

  std::vector<std::vector<int>> groups;

 private:
  double size(std::size_t a) const { return static_cast<double>(groups[a].size()); }
  double pairs(std::size_t a) const { return size(a) * (size(a) - 1) / 2; }
  double between(std::size_t a, std::size_t b) const { return sums_[a][b] / (size(a) * size(b)); }

  std::vector<std::vector<double>> sums_;  // the diagonal: over the pairs within
  double deviation_ = 0;                   // root mean square of all cosines
};

}  // namespace

std::vector<int> group_directions(std::span<const double> products, int num_clients, std::span<const int> members,
                                  const GroupingRule& rule) {
  const auto n = static_cast<std::size_t>(num_clients);
  check(products.size() == n * n, "products of all clients");
  std::vector<int> directed, directionless;
  for (int client : members) {
    const auto c = static_cast<std::size_t>(client);
    (products[c * n + c] > 0 ? directed : directionless).push_back(client);
  }
  Merging merging(products, n, directed);
  std::vector<std::vector<int>>& groups = merging.groups;
  while (groups.size() > std::max<std::size_t>(1, static_cast<std::size_t>(rule.num_groups))) {
    const auto [a, b] = merging.closest();
    if (rule.num_groups == 0 && merging.conflict(a, b, rule.errors)) break;
    merging.merge(a, b);
  }
  if (groups.empty()) groups.emplace_back();
  auto largest =
      std::max_element(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
  largest->insert(largest->end(), directionless.begin(), directionless.end());
  for (auto& group : groups) std::sort(group.begin(), group.end());
  std::sort(groups.begin(), groups.end());
  std::vector<int> result(n, -1);
  for (std::size_t g = 0; g < groups.size(); ++g)
    for (int client : groups[g]) result[static_cast<std::size_t>(client)] = static_cast<int>(g);
  return result;
}

}  // namespace fedpdpo
