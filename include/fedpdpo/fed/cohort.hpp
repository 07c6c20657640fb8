// How many clients a rank trains in lock-step (--cohort), how many packed rows a pass has (--micro-rows) and how many
// clients' state lies on the device at once (--resident), where these are left to the program: functions of numbers.
//
// A device takes about the same time for any pass that does not fill it, and the members of a cohort share a pass. So a
// cohort grows until a step of its members fills one pass; more members would bring nothing but memory. It must fit,
// with the buffers of a pass, into what the device has free; the state of the clients that then do not is swapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/comm/communicator.hpp"
#include "fedpdpo/fed/method.hpp"
#include "fedpdpo/fed/options.hpp"

namespace fedpdpo {

/// Rows of a pass where --micro-rows is auto. On a device, rows that fill its multiprocessors with tiles of the layers'
/// products at d about 1000: an estimate until it is measured.
inline constexpr int host_micro_rows = 1024, device_micro_rows = 8192;

/// That of the backend.
inline int default_micro_rows(const Backend& backend) { return backend.memory() ? device_micro_rows : host_micro_rows; }

/// What the options ask for; 0: auto.
struct CohortRequest {
  int cohort = 0, micro_rows = 0, resident = 0;

  static CohortRequest of(const RunOptions& options) { return {options.cohort, options.micro_rows, options.resident}; }
};

/// What the choice is made from, on one rank.
struct CohortFacts {
  int num_clients = 1;            ///< hosted
  int num_trained = 1;            ///< in a round, by the rank that trains most
  double step_rows = 0;           ///< packed rows of a client's step, typically
  std::int64_t longest_pair = 0;  ///< packed rows; a pass has at least one pair of every member
  /// Bytes of the device that this rank may take. Without a number work is done in the host's memory, where a cohort
  /// saves nothing, and nothing is swapped unless asked for.
  std::optional<std::size_t> free_bytes;
  std::size_t state_bytes = 0;     ///< of a client: values and both moments
  std::size_t gradient_bytes = 0;  ///< of a client
  std::size_t other_bytes = 0;     ///< whatever the choice: arrays of the method, server state, moved backbones
  std::function<std::size_t(std::int64_t rows)> pass_bytes;  ///< buffers of a pass of so many rows
};

struct CohortChoice {
  int cohort = 1;      ///< clients trained in lock-step, at most
  int micro_rows = 1;  ///< packed rows of a pass that the members share
  int resident = 1;    ///< clients whose state is on the device at once

  bool operator==(const CohortChoice&) const = default;
};

/// The size, at most `most`, that splits `clients` into as few cohorts of nearly equal size: 10 at most 8 are 5 and 5.
int balanced_size(int clients, int most);

/// Rows that the buffers of a pass are counted with: every member's share of the pass or its longest pair, and a
/// quarter more, by which buffers grow.
std::int64_t buffer_rows(const CohortFacts& facts, const CohortChoice& choice);

/// Bytes that a choice is predicted to take. Gradients count once where members are trained one by one, else once a
/// resident client, at whose slot they lie.
std::size_t predicted_bytes(const CohortFacts& facts, const CohortChoice& choice);

/// Of these, and of what no prediction knows, the bytes that are not taken with the clients' state and gradients.
std::size_t later_bytes(const CohortFacts& facts, const CohortChoice& choice);

/// Numbers of the request stay as they are. The rest: the largest cohort that pays and fits, with two cohorts resident
/// where memory allows (so that the next is loaded while one is trained), else one, and as many more as fit. The
/// smallest choice where nothing fits.
CohortChoice choose_cohort(const CohortRequest& request, const CohortFacts& facts);

/// After `taken` was found not to fit: the free bytes for which the choice is a smaller one; nothing where there is
/// none.
std::optional<std::size_t> smaller_budget(const CohortRequest& request, const CohortFacts& facts,
                                          const CohortChoice& taken);

/// What a run's facts are made of.
struct CohortInput {
  const Backend& backend;
  const Policy& policy;
  const ParameterLayout& layout;
  const ModelConfig& config;
  const FederatedMethod& method;
  const RunOptions& options;
  const PairSet& pairs;
  const Partition& partition;
};

/// Of a rank that hosts these clients and shares its device with `ranks_on_device` - 1 others. Rows are those of the
/// whole partition, the same on every rank.
CohortFacts cohort_facts(const CohortInput& input, std::span<const int> clients, int ranks_on_device);

/// Collective. Ranks of this node whose backend uses this rank's device; 1 on the host.
int ranks_on_device(const Communicator& world, const Backend& backend);

}  // namespace fedpdpo
