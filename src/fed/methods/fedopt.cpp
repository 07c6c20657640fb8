// FedAdagrad, FedYogi, FedAdam (Reddi et al. 2021, arXiv 2003.00295, algorithm 2): an adaptive optimizer on the server,
// without bias correction, its second moment of D itself and not of the momentum, starting from tau^2.
//   shared: A, B    local: K steps of the loss from x
//   server: D = sum p_i y_i - x; m <- beta1 m + (1 - beta1) D; x <- x + eta m / (sqrt(v) + tau), with
//     fedadagrad v <- v + D^2
//     fedyogi    v <- v - (1 - beta2) D^2 sign(v - D^2)
//     fedadam    v <- beta2 v + (1 - beta2) D^2
#include <cmath>

#include "methods.hpp"

namespace fedpdpo {

void FedOpt::update_server(ServerState& server, const ServerRound& round) const {
  const std::size_t n = server.values.size();
  std::vector<float>& m = server.state["first_moment"];
  std::vector<float>& v = server.state["second_moment"];
  m.resize(n);
  v.resize(n, static_cast<float>(options_.tau * options_.tau));
  for (std::size_t i = 0; i < n; ++i) {
    const double x = server.values[i], d = static_cast<double>(round.average[i]) - x, d2 = d * d;
    const double first = options_.momentum * static_cast<double>(m[i]) + (1 - options_.momentum) * d;
    double second = v[i];
    switch (rule_) {
      case Rule::adagrad:
        second += d2;
        break;
      case Rule::yogi:
        second -= (1 - options_.beta2) * d2 * (second > d2 ? 1 : (second < d2 ? -1 : 0));
        break;
      case Rule::adam:
        second = options_.beta2 * second + (1 - options_.beta2) * d2;
        break;
    }
    m[i] = static_cast<float>(first);
    v[i] = static_cast<float>(second);
    server.values[i] = static_cast<float>(x + options_.rate * first / (std::sqrt(second) + options_.tau));
  }
}

}  // namespace fedpdpo
