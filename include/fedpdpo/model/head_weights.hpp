// The pretrained LLM head as passes read it, and the same numbers on the host, where private heads start from.
#pragma once

#include "fedpdpo/backend/tensor.hpp"

namespace fedpdpo {

struct HeadWeights : ConstView {
  const void* host = nullptr;  ///< where `data` is not the host's: a copy that is, rows `cols` apart

  HeadWeights() = default;
  /// A head in host memory.
  HeadWeights(const ConstView& view) : ConstView(view), host(view.data) {}
  HeadWeights(const ConstView& view, const void* host_data) : ConstView(view), host(host_data) {}
};

}  // namespace fedpdpo
