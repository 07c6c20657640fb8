// Partition of the pairs among clients. Proportions are drawn as numbers in [0, 1] and at once turned into whole parts
// of 2^32; everything after that is integer arithmetic, so no rounding of a compiler or processor decides who gets a
// pair. A category's pairs are cut by largest remainders that remember what earlier categories owe each client: each
// cut is within one pair of its proportion, and so, nearly, is a client's total, however small the categories are.
#include "fedpdpo/data/partition.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <map>
#include <numeric>
#include <optional>
#include <span>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/random.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t num_splits = split_names.size();
constexpr int max_redraws = 5000;
constexpr std::uint64_t whole = std::uint64_t{1} << 32;
constexpr int claim_shift = 20;                     // claims that agree to 2^-12 pairs are equal: the lot decides
constexpr std::uint32_t domain_wide = 0x0FFFFFFFu;  // in the place of a category

std::string client_name(std::size_t client) { return fmt::format("client{:03}", client); }

// What a stream of Purpose::partition is drawn for: the upper bits of its round.
enum class Draw : std::uint32_t { proportions = 0, tie_order = 1, pair_order = 2, client_order = 3 };

RandomStream stream(std::uint64_t seed, Draw draw, std::size_t owner, std::size_t number, int attempt) {
  check(number <= domain_wide, "too many categories");
  return RandomStream({.seed = seed,
                       .purpose = Purpose::partition,
                       .client = static_cast<std::uint32_t>(owner),
                       .round = static_cast<std::uint32_t>(draw) << 28 | static_cast<std::uint32_t>(number),
                       .step = static_cast<std::uint32_t>(attempt)});
}

// Parts of `whole` for every client of a domain; they sum to it exactly.
using Parts = std::vector<std::uint64_t>;

Parts uniform_parts(std::size_t num_clients) {
  Parts parts(num_clients);
  for (std::size_t k = 0; k < num_clients; ++k) {
    parts[k] = whole * (k + 1) / num_clients - whole * k / num_clients;
  }
  return parts;
}

Parts dirichlet_parts(RandomStream random, double alpha, std::size_t num_clients) {
  const std::vector<double> proportions = random.dirichlet(alpha, num_clients);
  Parts parts(num_clients);
  double sum = 0;
  std::uint64_t previous = 0;
  for (std::size_t k = 0; k < num_clients; ++k) {
    sum += proportions[k];
    const auto rounded = static_cast<std::uint64_t>(std::floor(sum * static_cast<double>(whole) + 0.5));
    const std::uint64_t bound = k + 1 == num_clients ? whole : std::clamp(rounded, previous, whole);
    parts[k] = bound - previous;
    previous = bound;
  }
  return parts;
}

// One file and the run of clients that it is dealt to.
struct Domain {
  std::size_t index = 0;
  const PairFile* file = nullptr;
  std::size_t first_client = 0;
  std::size_t num_clients = 0;
  std::vector<std::array<std::vector<std::uint32_t>, num_splits>> categories;  // pairs by label and split
  std::array<std::size_t, num_splits> num_pairs{};
};

// counts[(category * num_splits + split) * num_clients + k]
using Counts = std::vector<std::uint32_t>;

// Cuts n items in the given parts. owed[k], in 1/2^32 items, is what rounding has kept from client k so far; where
// two clients have (nearly) the same claim, the order decides.
void apportion(std::uint64_t n, const Parts& parts, std::span<const std::uint32_t> tie_order,
               std::span<std::int64_t> owed, std::span<std::uint32_t> counts) {
  struct Claim {
    std::int64_t size;
    std::uint32_t tie;
    std::size_t client;
  };
  std::vector<Claim> claims;
  std::uint64_t left = n;
  for (std::size_t k = 0; k < parts.size(); ++k) {
    const std::uint64_t exact = n * parts[k];
    counts[k] = static_cast<std::uint32_t>(exact >> 32);
    left -= counts[k];
    const auto fraction = static_cast<std::int64_t>(exact & (whole - 1));
    owed[k] += fraction;
    if (fraction > 0)
      claims.push_back({(owed[k] + (std::int64_t{1} << (claim_shift - 1))) >> claim_shift, tie_order[k], k});
  }
  check(left <= claims.size(), "largest remainders do not add up");
  std::sort(claims.begin(), claims.end(),
            [](const Claim& a, const Claim& b) { return a.size != b.size ? a.size > b.size : a.tie < b.tie; });
  for (std::size_t i = 0; i < left; ++i) {
    ++counts[claims[i].client];
    owed[claims[i].client] -= static_cast<std::int64_t>(whole);
  }
}

class DomainPartition {
 public:
  DomainPartition(const Domain& domain, const PartitionOptions& options) : domain_(domain), options_(options) {
    least_[0] = std::max<std::size_t>(options.min_train, 1);
    // A client cannot keep more than it is cut down to.
    if (options.max_train > 0) least_[0] = std::min(least_[0], options.max_train);
    least_[2] = 1;
  }

  // Draws until every client has enough; the number of the attempt that did.
  int draw() {
    require_enough_pairs();
    for (int attempt = 0; attempt <= max_redraws; ++attempt) {
      draw_counts(attempt);
      if (!first_short_client()) return attempt;
    }
    const std::size_t client = *first_short_client();
    throw InputError(
        domain_.file->path.string(), client_name(domain_.first_client + client),
        fmt::format("at least {} train and {} test pairs in one of {} draws", least_[0], least_[2], max_redraws + 1),
        fmt::format("{} and {} in the last one; raise --alpha, or lower --clients or --min-train", total(0, client),
                    total(2, client)));
  }

  // Fills the clients with the pairs of the attempt last drawn.
  void assign(int attempt, std::span<ClientShare> clients) const {
    for (std::size_t category = 0; category < domain_.categories.size(); ++category) {
      for (std::size_t split = 0; split < num_splits; ++split) {
        const std::vector<std::uint32_t>& pairs = domain_.categories[category][split];
        const auto order =
            stream(options_.seed, Draw::pair_order, domain_.index, category * num_splits + split, attempt)
                .permutation(static_cast<std::uint32_t>(pairs.size()));
        std::size_t next = 0;
        for (std::size_t k = 0; k < domain_.num_clients; ++k) {
          for (std::uint32_t i = counts_[cell(category, split) + k]; i > 0; --i) {
            clients[k].pairs[split].push_back({static_cast<std::uint32_t>(domain_.index), pairs[order[next++]]});
          }
        }
      }
    }
    const std::array<std::size_t, num_splits> most{options_.max_train, options_.max_validation, options_.max_test};
    for (std::size_t k = 0; k < domain_.num_clients; ++k) {
      for (std::size_t split = 0; split < num_splits; ++split) {
        std::vector<PairId>& pairs = clients[k].pairs[split];
        const auto order = stream(options_.seed, Draw::client_order, domain_.first_client + k, split, attempt)
                               .permutation(static_cast<std::uint32_t>(pairs.size()));
        std::vector<PairId> shuffled(most[split] > 0 ? std::min(most[split], pairs.size()) : pairs.size());
        for (std::size_t i = 0; i < shuffled.size(); ++i) shuffled[i] = pairs[order[i]];
        pairs = std::move(shuffled);
      }
    }
  }

 private:
  std::size_t cell(std::size_t category, std::size_t split) const {
    return (category * num_splits + split) * domain_.num_clients;
  }

  std::size_t total(std::size_t split, std::size_t client) const {
    std::size_t sum = 0;
    for (std::size_t category = 0; category < domain_.categories.size(); ++category) {
      sum += counts_[cell(category, split) + client];
    }
    return sum;
  }

  std::optional<std::size_t> first_short_client() const {
    for (std::size_t k = 0; k < domain_.num_clients; ++k) {
      if (total(0, k) < least_[0] || total(2, k) < least_[2]) return k;
    }
    return std::nullopt;
  }

  void require_enough_pairs() const {
    for (const std::size_t split : {std::size_t{0}, std::size_t{2}}) {
      if (domain_.num_pairs[split] >= least_[split] * domain_.num_clients) continue;
      throw InputError(
          domain_.file->path.string(), fmt::format("{} pairs", split_names[split]),
          fmt::format("at least {}, {} for each of {} clients", least_[split] * domain_.num_clients, least_[split],
                      domain_.num_clients),
          fmt::format("{}; lower --clients{}", domain_.num_pairs[split], split == 0 ? " or --min-train" : ""));
    }
  }

  Parts draw_parts(std::size_t number, int attempt) const {
    if (options_.kind == PartitionKind::iid) return uniform_parts(domain_.num_clients);
    return dirichlet_parts(stream(options_.seed, Draw::proportions, domain_.index, number, attempt), options_.alpha,
                           domain_.num_clients);
  }

  void draw_counts(int attempt) {
    const std::size_t num_categories = domain_.categories.size();
    const bool by_category = options_.kind == PartitionKind::dirichlet;
    counts_.assign(num_categories * num_splits * domain_.num_clients, 0);
    std::vector<std::int64_t> owed(num_splits * domain_.num_clients, 0);
    Parts parts;
    if (!by_category) parts = draw_parts(domain_wide, attempt);
    for (std::size_t category = 0; category < num_categories; ++category) {
      if (by_category) parts = draw_parts(category, attempt);
      for (std::size_t split = 0; split < num_splits; ++split) {
        const std::size_t n = domain_.categories[category][split].size();
        if (n == 0) continue;
        const auto ties = stream(options_.seed, Draw::tie_order, domain_.index, category * num_splits + split, attempt)
                              .permutation(static_cast<std::uint32_t>(domain_.num_clients));
        apportion(n, parts, ties, std::span(owed).subspan(split * domain_.num_clients, domain_.num_clients),
                  std::span(counts_).subspan(cell(category, split), domain_.num_clients));
      }
    }
  }

  const Domain& domain_;
  const PartitionOptions& options_;
  std::array<std::size_t, num_splits> least_{};
  Counts counts_;
};

Domain make_domain(const PairSet& pairs, std::size_t index, std::size_t num_clients) {
  const std::size_t num_domains = pairs.files.size();
  Domain domain;
  domain.index = index;
  domain.file = &pairs.files[index];
  // Client c belongs to domain floor(c F / C): the first of domain f is ceil(f C / F).
  domain.first_client = (index * num_clients + num_domains - 1) / num_domains;
  domain.num_clients = ((index + 1) * num_clients + num_domains - 1) / num_domains - domain.first_client;
  domain.categories.resize(domain.file->label_names.size());
  for (std::size_t i = 0; i < domain.file->size(); ++i) {
    const auto split = static_cast<std::size_t>(domain.file->split[i]);
    domain.categories[static_cast<std::size_t>(domain.file->label[i])][split].push_back(static_cast<std::uint32_t>(i));
    ++domain.num_pairs[split];
  }
  return domain;
}

void require_valid(const PairSet& pairs, const PartitionOptions& options) {
  if (options.num_clients < 1) throw InputError("", "--clients", "at least 1", std::to_string(options.num_clients));
  if (static_cast<std::size_t>(options.num_clients) < pairs.files.size()) {
    throw InputError("", "--clients", fmt::format("at least {}, one for each pair file", pairs.files.size()),
                     std::to_string(options.num_clients));
  }
  if (options.num_new_clients < 0 ||
      static_cast<std::size_t>(options.num_clients - options.num_new_clients) < pairs.files.size()) {
    throw InputError("", "--new-clients",
                     fmt::format("at most {}, so that each pair file keeps a client that trains",
                                 options.num_clients - static_cast<int>(pairs.files.size())),
                     std::to_string(options.num_new_clients));
  }
  if (options.kind != PartitionKind::iid && !(options.alpha > 0 && std::isfinite(options.alpha))) {
    throw InputError("", "--alpha", "a number above 0", fmt::format("{}", options.alpha));
  }
  if (!(options.flip_clients >= 0 && options.flip_clients <= 1)) {
    throw InputError("", "--flip-clients", "a share between 0 and 1", fmt::format("{}", options.flip_clients));
  }
}

/// Clients that never train, drawn at random; every domain keeps one that does.
void draw_new_clients(const PartitionOptions& options, std::vector<ClientShare>& clients) {
  std::map<std::int32_t, int> left;
  for (const ClientShare& client : clients) ++left[client.domain];
  RandomStream random({.seed = options.seed, .purpose = Purpose::new_clients});
  int wanted = options.num_new_clients;
  for (const std::uint32_t c : random.permutation(static_cast<std::uint32_t>(clients.size()))) {
    if (wanted == 0) return;
    if (left[clients[c].domain] == 1) continue;
    --left[clients[c].domain];
    clients[c].is_new = true;
    --wanted;
  }
}

}  // namespace

std::vector<std::int64_t> Partition::label_histogram(const PairSet& pairs) const {
  const std::size_t num_labels = pairs.label_names.size();
  std::vector<std::int64_t> histogram(clients.size() * num_splits * num_labels, 0);
  for (std::size_t client = 0; client < clients.size(); ++client) {
    for (std::size_t split = 0; split < num_splits; ++split) {
      for (const PairId id : clients[client].pairs[split]) {
        ++histogram[(client * num_splits + split) * num_labels + static_cast<std::size_t>(pairs.label(id))];
      }
    }
  }
  return histogram;
}

Partition make_partition(const PairSet& pairs, const PartitionOptions& options) {
  require_valid(pairs, options);
  const auto num_clients = static_cast<std::size_t>(options.num_clients);
  Partition partition;
  partition.clients.resize(num_clients);
  for (std::size_t index = 0; index < pairs.files.size(); ++index) {
    const Domain domain = make_domain(pairs, index, num_clients);
    const std::span<ClientShare> clients =
        std::span(partition.clients).subspan(domain.first_client, domain.num_clients);
    for (std::size_t k = 0; k < clients.size(); ++k) {
      const std::string name = client_name(domain.first_client + k);
      clients[k].name = pairs.files.size() > 1 ? domain.file->domain + "/" + name : name;
      clients[k].domain = static_cast<std::int32_t>(index);
    }
    DomainPartition parts(domain, options);
    const int attempt = parts.draw();
    partition.num_redraws += attempt;
    parts.assign(attempt, clients);
  }

  RandomStream random({.seed = options.seed, .purpose = Purpose::flips});
  const std::vector<std::uint32_t> order = random.permutation(static_cast<std::uint32_t>(num_clients));
  const auto num_flipped = static_cast<std::size_t>(std::llround(options.flip_clients * options.num_clients));
  for (std::size_t i = 0; i < num_flipped; ++i) partition.clients[order[i]].flipped = true;
  draw_new_clients(options, partition.clients);
  return partition;
}

}  // namespace fedpdpo
