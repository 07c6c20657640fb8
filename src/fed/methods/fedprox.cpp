// FedProx (Li et al. 2020, arXiv 1812.06127).
//   shared: A, B    local: g <- g + prox_mu (y - x), the gradient of prox_mu/2 ||y - x||^2    server: x <- sum p_i y_i
#include "methods.hpp"

namespace fedpdpo {

void FedProx::adjust_gradient(const LocalStep& step) const {
  if (prox_mu_ == 0) return;
  const auto shared = static_cast<std::int64_t>(step.layout.shared_size());
  const auto mu = static_cast<float>(prox_mu_);
  View gradient = step.gradient.columns(0, shared);
  step.backend.axpy(mu, step.values.columns(0, shared), gradient, Write::accumulate);
  step.backend.axpy(-mu, step.server, gradient, Write::accumulate);
}

}  // namespace fedpdpo
