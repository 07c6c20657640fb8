// FedAvg with local fine-tuning (Yu et al. 2020, arXiv 2002.04758): the averaged model, trained on for `--refit` steps
// by every client before it is evaluated; the next round starts from x.
//   shared: A, B    local: K steps of the loss from x, and N steps after the exchange    server: x <- sum p_i y_i
#include "methods.hpp"

namespace fedpdpo {

bool FedAvgFt::refits_everything() const { return true; }

}  // namespace fedpdpo
