// Local training: every client on its own, nothing travels; local-pdpo with FedPDPO's private modules.
//   shared: -    local: K steps of the loss from where it left off    server: -
#include "methods.hpp"

namespace fedpdpo {

std::vector<Group> Local::shared_groups() const { return {}; }

}  // namespace fedpdpo
