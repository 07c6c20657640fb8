// The choice of cohort, pass and residency.
#include "fedpdpo/fed/cohort.hpp"

#include <algorithm>
#include <cmath>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// Rows of a pass are not halved below this.
constexpr int least_rows = 256;
/// A sixteenth beside what is predicted is for what no prediction knows: operations' scratch, fragments.
constexpr std::size_t reserve_divisor = 16;
/// Room in a pass for steps whose pairs are longer than typical ones: a step that does not fit is cut in two.
constexpr double step_slack = 1.25;

std::size_t budget(const CohortFacts& facts) { return *facts.free_bytes / (reserve_divisor + 1) * reserve_divisor; }

int clamped(double value, int low, int high) { return static_cast<int>(std::clamp<double>(value, low, high)); }

/// From how many clients on a larger cohort does not pay.
int paying_size(const CohortRequest& request, const CohortFacts& facts) {
  const double rows = std::max(1.0, facts.step_rows);
  // A given pass is shared by as many as have a whole step in it; a pass of our own is made to hold the steps.
  constexpr int most = 1 << 20;
  if (request.micro_rows > 0) return clamped(std::floor(request.micro_rows / rows), 1, most);
  return clamped(std::ceil(device_micro_rows / rows), 1, most);
}

/// Passes for a cohort, the preferred one first.
std::vector<int> pass_sizes(const CohortRequest& request, const CohortFacts& facts, int cohort) {
  if (request.micro_rows > 0) return {request.micro_rows};
  std::vector<int> sizes;
  if (cohort > 1) {
    const int whole = clamped(std::ceil(step_slack * cohort * facts.step_rows), 1, 1 << 30);
    sizes = {std::max(whole, device_micro_rows), whole};
  } else {
    for (int rows = device_micro_rows; rows >= least_rows; rows /= 2) sizes.push_back(rows);
  }
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

/// Clients whose state fits beside the rest, at most those that are hosted.
int most_resident(const CohortFacts& facts, CohortChoice choice) {
  choice.resident = 0;
  const std::size_t rest = predicted_bytes(facts, choice), all = budget(facts);
  if (rest > all) return 0;
  choice.resident = 1;
  const std::size_t each = predicted_bytes(facts, choice) - rest;
  if (each == 0) return facts.num_clients;
  return static_cast<int>(std::min<std::size_t>((all - rest) / each, static_cast<std::size_t>(facts.num_clients)));
}

/// The choice of a cohort's pass with at least `resident` clients; nothing where it does not fit.
std::optional<CohortChoice> fitting(const CohortRequest& request, const CohortFacts& facts, int cohort, int resident) {
  for (const int rows : pass_sizes(request, facts, cohort)) {
    CohortChoice choice{cohort, rows, 0};
    const int most = most_resident(facts, choice);
    choice.resident = request.resident > 0 ? std::min(request.resident, facts.num_clients) : most;
    if (most >= choice.resident && choice.resident >= std::min(resident, facts.num_clients)) return choice;
  }
  return std::nullopt;
}

CohortChoice choose_on_host(const CohortRequest& request, const CohortFacts& facts) {
  CohortChoice choice;
  choice.cohort = std::max(1, request.cohort);
  choice.micro_rows = request.micro_rows > 0 ? request.micro_rows : host_micro_rows;
  choice.resident = request.resident > 0 ? std::min(request.resident, facts.num_clients) : facts.num_clients;
  return choice;
}

}  // namespace

int balanced_size(int clients, int most) {
  check(clients > 0 && most > 0, "balanced_size: numbers from 1");
  const int cohorts = (clients + most - 1) / most;
  return (clients + cohorts - 1) / cohorts;
}

std::int64_t buffer_rows(const CohortFacts& facts, const CohortChoice& choice) {
  const std::int64_t each = std::max<std::int64_t>(facts.longest_pair, choice.micro_rows / choice.cohort);
  const std::int64_t members = std::min(choice.cohort, std::max(1, facts.num_clients));
  // An evaluation's pass is of one client, and a member's share may round up to it.
  const std::int64_t rows = std::max<std::int64_t>(members * each, choice.micro_rows);
  return rows + rows / 4;
}

std::size_t predicted_bytes(const CohortFacts& facts, const CohortChoice& choice) {
  const auto resident = static_cast<std::size_t>(choice.resident);
  const std::size_t gradients = facts.gradient_bytes * (choice.cohort > 1 ? resident : 1);
  return resident * facts.state_bytes + gradients + facts.other_bytes + facts.pass_bytes(buffer_rows(facts, choice));
}

std::size_t later_bytes(const CohortFacts& facts, const CohortChoice& choice) {
  const std::size_t reserve = predicted_bytes(facts, choice) / reserve_divisor;
  return facts.other_bytes + facts.pass_bytes(buffer_rows(facts, choice)) + reserve;
}

CohortChoice choose_cohort(const CohortRequest& request, const CohortFacts& facts) {
  if (!facts.free_bytes) return choose_on_host(request, facts);
  int largest = request.cohort;
  if (largest == 0) {
    largest = balanced_size(std::max(1, facts.num_trained), paying_size(request, facts));
    if (request.resident > 0) largest = std::min(largest, request.resident);
  }
  const int smallest = request.cohort > 0 ? largest : 1;
  for (int cohort = largest; cohort >= smallest; --cohort)
    for (const int cohorts : {2, 1}) {
      if (request.resident > 0 && cohorts * cohort > request.resident) continue;
      if (auto choice = fitting(request, facts, cohort, cohorts * cohort)) return *choice;
    }
  CohortChoice least{smallest, pass_sizes(request, facts, smallest).back(), 0};
  least.resident = std::min(request.resident > 0 ? request.resident : smallest, facts.num_clients);
  return least;
}

std::optional<std::size_t> smaller_budget(const CohortRequest& request, const CohortFacts& facts,
                                          const CohortChoice& taken) {
  if (!facts.free_bytes) return std::nullopt;
  const std::size_t bytes = predicted_bytes(facts, taken);
  CohortFacts shrunk = facts;
  for (std::size_t free = bytes; free > 0; free -= (free + 9) / 10) {
    shrunk.free_bytes = free;
    if (predicted_bytes(facts, choose_cohort(request, shrunk)) < bytes) return free;
  }
  return std::nullopt;
}

}  // namespace fedpdpo
