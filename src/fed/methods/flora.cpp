// FLoRA (Wang et al. 2024, arXiv 2409.05976): the clients' factors are stacked, which adds their products up exactly,
// also where ranks differ (--lora-ranks), and merged into the frozen weights; the next round starts from a fresh LoRA.
//   shared: A, B    local: K steps of the loss on a fresh A, B (rank r_k, scale s_k = lora_alpha / r_k), on W0 + R
//   server: R <- R + sum p_i s_i B_i A_i; x <- a new random A, B = 0, the same for all
#include "fedpdpo/fed/moving_backbone.hpp"
#include "methods.hpp"

namespace fedpdpo {

void FLoRa::update_server(ServerState& server, const ServerRound& round) const {
  round.layout.restart_lora(round.seed, round.round, server.values);
}

void FLoRa::move_backbone(ServerState& server, const ServerRound& round, std::span<const WeightedLora> clients) const {
  add_products(round.layout, clients, round.layout.lora_scale(), server.residual);
}

std::vector<Group> FLoRa::restarted_groups() const { return {Group::lora_a, Group::lora_b}; }

std::string FLoRa::refuses(Feature feature) const {
  return feature == Feature::lora_ranks ? "" : FedAvg::refuses(feature);
}

/// Down come the stacked factors of all participants, or the weights that changed where these are fewer.
Traffic FLoRa::traffic(const TrafficRound& round) const {
  const auto size = static_cast<double>(round.layout.shared_size());
  const auto stacked = static_cast<std::size_t>(size * round.rank_shares);
  return {static_cast<std::size_t>(size * round.rank_share), std::min(stacked, round.residual)};
}

}  // namespace fedpdpo
