// FedEx-LoRA (Singhal et al. 2025, arXiv 2410.09432): what averaging the factors apart leaves out is added to the
// frozen weights, so that every round's average is exact.
//   shared: A, B    local: K steps of the loss on A and B, on W0 + R    server: x <- sum p_i y_i,
//   R <- R + s (sum p_i B_i A_i - B A) with A, B the averages and s = lora_alpha / r
#include "fedpdpo/fed/moving_backbone.hpp"
#include "methods.hpp"

namespace fedpdpo {

void FedExLora::move_backbone(ServerState& server, const ServerRound& round,
                              std::span<const WeightedLora> clients) const {
  const double scale = round.layout.lora_scale();
  add_products(round.layout, clients, scale, server.residual);
  const WeightedLora average{server.values, 1};
  add_products(round.layout, std::span(&average, 1), -scale, server.residual);
}

/// The residual travels down as the clients' factors or as it is, whichever is smaller.
Traffic FedExLora::traffic(const TrafficRound& round) const {
  const std::size_t size = round.layout.shared_size();
  const std::size_t factors = size * static_cast<std::size_t>(round.num_participants);
  return {size, size + std::min(factors, round.residual)};
}

}  // namespace fedpdpo
