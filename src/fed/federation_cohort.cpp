// The round loop: which clients are trained in lock-step, and where their state lies.
#include <fmt/format.h>

#include <algorithm>

#include "fedpdpo/backend/cuda.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"

namespace fedpdpo {
namespace {

double mib(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

/// The largest of all ranks' numbers.
int largest(const Communicator& world, int number) {
  std::int64_t value = number;
  world.max(std::span(&value, 1));
  return static_cast<int>(value);
}

}  // namespace

/// Collective. Chooses, makes room, and where a rank's device turns out to have less than it said chooses again; the
/// size of cohorts and passes, which results depend on, is the same on every rank and in a run that goes on.
void Federation::take_cohort(const CheckpointReader* begun) {
  CohortRequest request = CohortRequest::of(in_.options);
  if (begun) {
    request.cohort = std::stoi(begun->facts().at("cohort"));
    request.micro_rows = std::stoi(begun->facts().at("micro-rows"));
  }
  CohortFacts facts =
      cohort_facts({in_.backend, policy_, layout_, in_.config, in_.method, in_.options, in_.pairs, in_.partition},
                   clients_.numbers(), ranks_on_device(in_.world, in_.backend));
  facts.num_trained = largest(in_.world, facts.num_trained);
  CohortChoice wanted = choose_cohort(request, facts);
  while (true) {
    CohortRequest agreed = request;
    agreed.cohort = -largest(in_.world, -wanted.cohort);
    agreed.micro_rows = -largest(in_.world, -wanted.micro_rows);
    cohort_ = choose_cohort(agreed, facts);
    const auto failure = allocate(cohort_, later_bytes(facts, cohort_));
    if (!any_rank(failure.has_value())) break;
    trainer_.reset();
    clients_.release_room();
    in_.backend.synchronize();
    if (!failure) continue;
    const auto budget = smaller_budget(request, facts, cohort_);
    if (!budget) throw OutOfDeviceMemory(*failure);
    facts.free_bytes = budget;
    wanted = choose_cohort(request, facts);
    log_warning(fmt::format("no room for a cohort of {} with {} clients resident ({}); trying {} with {}",
                            cohort_.cohort, cohort_.resident, *failure, wanted.cohort, wanted.resident));
  }
  resident_.assign(static_cast<std::size_t>(in_.world.size()), 0);
  resident_[static_cast<std::size_t>(in_.world.rank())] = cohort_.resident;
  in_.world.max(resident_);
  std::string line = cohort_.cohort > 1 ? fmt::format("up to {} clients in lock-step", cohort_.cohort)
                                        : std::string("one client at a time");
  line += fmt::format(", {} rows a pass", cohort_.micro_rows);
  if (!clients_.all_resident())
    line += fmt::format(", {} of {} clients' state on the device at once", cohort_.resident, facts.num_clients);
  if (facts.free_bytes)
    line += fmt::format("; {:.0f} MiB predicted, {:.0f} MiB were free", mib(predicted_bytes(facts, cohort_)),
                        mib(*facts.free_bytes));
  log_info(line);
}

/// Really takes the memory. What comes later, most of it buffers that grow with the batches, is taken once and given
/// back to the backend, which keeps it. What failed, where it was for lack of memory.
std::optional<std::string> Federation::allocate(const CohortChoice& choice, std::size_t later) {
  const RunOptions& o = in_.options;
  try {
    clients_.make_room(choice.resident);
    if (clients_.all().empty()) return std::nullopt;
    TrainerOptions trainer{loss_, o.optimizer, o.batch, choice.micro_rows, o.rounds, o.seed(), o.graphs};
    // A member's gradient lies at its slot, like its values: a slot's share is a third of what the state takes.
    const int gradients = choice.cohort > 1 ? choice.resident : 1;
    trainer_ = std::make_unique<LocalTrainer>(in_.backend, in_.pairs, layout_, policy_, clients_.buffers(), trainer,
                                              gradients);
    if (in_.backend.memory()) in_.backend.allocate(later);
  } catch (const OutOfDeviceMemory& error) {
    return error.what();
  }
  return std::nullopt;
}

std::map<std::string, std::string> Federation::execution_facts() const {
  std::string resident;
  for (const std::int64_t clients : resident_) resident += (resident.empty() ? "" : " ") + std::to_string(clients);
  return {{"cohort", std::to_string(cohort_.cohort)},
          {"micro_rows", std::to_string(cohort_.micro_rows)},
          {"resident_clients", resident}};
}

/// The clients in lists of those that go through the passes together: in step, so that after a resume those that have
/// done equally much are together, and on one backbone.
std::vector<HostedClients::Cohort> Federation::cohorts(std::span<HostedClient* const> clients,
                                                       const std::function<int(const HostedClient&)>& done) {
  std::map<std::pair<int, int>, HostedClients::Cohort> alike;  // the furthest first
  for (HostedClient* client : clients) {
    const AggregationGroup* const group = in_.method.moves_backbone() ? group_of(client->state.client) : nullptr;
    alike[{-done(*client), group ? group->index() : 0}].push_back(client);
  }
  std::vector<HostedClients::Cohort> result;
  for (const auto& [key, list] : alike) {
    // Larger ones first, so that what is left when the run is broken off is cut as it would have been.
    for (std::size_t begin = 0; begin < list.size(); begin += result.back().size()) {
      const auto left = static_cast<int>(list.size() - begin);
      const auto count = static_cast<std::ptrdiff_t>(balanced_size(left, cohort_.cohort));
      const auto first = list.begin() + static_cast<std::ptrdiff_t>(begin);
      result.emplace_back(first, first + count);
    }
  }
  return result;
}

std::vector<HostedClient*> Federation::clients_in_groups() {
  std::vector<HostedClient*> list;
  for (HostedClient& client : clients_.all())
    if (group_of(client.state.client)) list.push_back(&client);
  return list;
}

}  // namespace fedpdpo
