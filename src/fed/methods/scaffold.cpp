// SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, option II), in the space of AdamW's normalised steps: with
// u the step that AdamW takes over lr, the local rule y <- y - lr (u - c_i + c) makes (x - y)/(K lr) = mean(u) - c_i +
// c.
//   shared: A, B    local: after AdamW, y <- y - lr (c - c_i); at the end c_i+ = c_i - c + (x - y)/(K lr)
//   server: x <- sum p_i y_i; c <- c + (1/N) sum (c_i+ - c_i) over the clients counted, N all clients of the group
#include "methods.hpp"

namespace fedpdpo {

void Scaffold::adjust_step(const LocalStep& step) const {
  const auto rate = static_cast<float>(step.learning_rate_shared);
  View y = step.shared(step.values);
  step.backend.axpy(rate, step.client_array("control"), y, Write::accumulate);
  if (const ConstView c = step.server_array("control"); c.data) step.backend.axpy(-rate, c, y, Write::accumulate);
}

void Scaffold::finish_local(const LocalStep& step) const {
  View change = step.client_array("control_change"), control = step.client_array("control");
  const double path = step.step * step.learning_rate_shared;
  if (path <= 0) {
    step.backend.fill(change, 0.0f);
    return;
  }
  const auto scale = static_cast<float>(1 / path);
  step.backend.axpy(scale, step.server, change, Write::overwrite);
  step.backend.axpy(-scale, step.shared(step.values), change, Write::accumulate);
  if (const ConstView c = step.server_array("control"); c.data) step.backend.axpy(-1.0f, c, change, Write::accumulate);
  step.backend.axpy(1.0f, change, control, Write::accumulate);
}

void Scaffold::update_server(ServerState& server, const ServerRound& round) const {
  FedAvg::update_server(server, round);
  std::vector<float>& c = server.state["control"];
  c.resize(server.values.size());
  const std::vector<float>& mean = round.means.at("control_change");
  const double share = static_cast<double>(round.num_counted) / round.num_clients;
  for (std::size_t i = 0; i < c.size(); ++i)
    c[i] = static_cast<float>(static_cast<double>(c[i]) + share * static_cast<double>(mean[i]));
}

Traffic Scaffold::traffic(const TrafficRound& round) const {
  return {2 * round.layout.shared_size(), 2 * round.layout.shared_size()};
}

}  // namespace fedpdpo
