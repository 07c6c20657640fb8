// FedConcord (this program): FedPDPO where clients agree, and no averaging across a conflict.
// Averaging cancels what two clients want where one prefers what the other rejects: their updates of B point apart,
// while those of clients with other data, but without a conflict, are nearly orthogonal (GroupingRule tells the two
// apart). A conflict is not in A: the gradient of A has B as a factor, so that with B A = (-B)(-A) opposite preferences
// move A alike. So B is averaged within groups found anew each round, A over everybody. Where no conflict is found, it
// is FedPDPO, bit for bit.
//   shared: A over all clients, B within a group    local: K steps of the loss on A, B and the private modules from x
//   server: d_i <- d_i + (B_i - x_B); groups g by average linkage on cos(d_i, d_j), until the closest two conflict;
//           x_A <- sum p_i A_i over all clients; x_B^g <- sum p_i B_i over g, p_i anew within g
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> FedConcord::common_groups() const { return {Group::lora_a}; }

}  // namespace fedpdpo
