// FedAvgM (Hsu, Qi, Brown 2019, arXiv 1909.06335): server momentum.
//   shared: A, B    local: K steps of the loss from x
//   server: D = sum p_i y_i - x; v <- beta1 v + D; x <- x + eta v
#include "methods.hpp"

namespace fedpdpo {

void FedAvgM::update_server(ServerState& server, const ServerRound& round) const {
  std::vector<float>& v = server.state["momentum"];
  v.resize(server.values.size());
  for (std::size_t i = 0; i < v.size(); ++i) {
    const double x = server.values[i];
    const double next = momentum_ * static_cast<double>(v[i]) + (static_cast<double>(round.average[i]) - x);
    v[i] = static_cast<float>(next);
    server.values[i] = static_cast<float>(x + server_lr_ * next);
  }
}

}  // namespace fedpdpo
