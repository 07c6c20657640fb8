// What a client owns and carries from round to round: the values of its trainables and Adam's moments on the device,
// its counters, and the sums of the round that it is in. All of it is in a checkpoint; none of it depends on ranks.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/data/packing.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "fedpdpo/model/layout.hpp"

namespace fedpdpo {

/// A pair with the reference's log-probabilities of its chosen and rejected response, as the client sees them (swapped
/// where it is flipped).
struct ClientPair {
  PairToPack pair;
  double reference_chosen = 0, reference_rejected = 0;
};

/// A client's own data; fixed for the run.
struct ClientData {
  int client = 0;
  std::array<std::vector<ClientPair>, 3> pairs;  // by Split

  const std::vector<ClientPair>& of(Split split) const { return pairs[static_cast<std::size_t>(split)]; }
};

/// Sums over the local steps of one round.
struct RoundSums {
  double loss = 0, correct = 0, pairs = 0, tokens = 0, steps = 0;
  double gradient_norm_shared = 0, gradient_norm_private = 0;
  bool finite =
      true;  ///< false once a gradient was not finite: the step was left out, the client is left out of the round

  static constexpr std::size_t num_fields = 8;
  std::array<double, num_fields> pack() const;
  static RoundSums unpack(std::span<const double> fields);
};

struct ClientState {
  int client = 0;
  std::int32_t slot = 0;  ///< in the rank's buffers, at present; -1: none (ClientStore)
  float lora_weight = 1;  ///< its LoRA's scale over the layout's: r / r_k where it has a rank of its own
  std::array<std::int64_t, num_groups> adam_steps{};
  std::int64_t pairs_drawn = 0;  ///< position in the endless shuffled list of its train pairs
  int steps_done = 0;            ///< local steps of the present round
  int refit_done = 0;            ///< refit steps of the present round
  RoundSums sums;
  std::map<std::string, Tensor> method_state;
};

/// The clients' state on the device: slot s at s * stride.
class ClientBuffers {
 public:
  ClientBuffers(Backend& backend, const ParameterLayout& layout, int num_slots);

  std::int64_t stride() const { return stride_; }
  View values(const ClientState& client) const { return row(values_, client); }
  View first_moment(const ClientState& client) const { return row(first_, client); }
  View second_moment(const ClientState& client) const { return row(second_, client); }
  CohortParameters parameters(Adapter adapter = Adapter::shared) const {
    return {values_.view().f32(), stride_, adapter};
  }
  std::size_t bytes() const { return values_.bytes() + first_.bytes() + second_.bytes(); }

 private:
  View row(const Tensor& tensor, const ClientState& client) const;

  std::int64_t size_, stride_;
  Tensor values_, first_, second_;  // (slots, stride)
};

}  // namespace fedpdpo
