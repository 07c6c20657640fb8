// The rank's device.
#include "fedpdpo/app/device.hpp"

#include <fmt/format.h>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

DeviceChoice choose_device(const std::string& wanted, const CudaDevices& here, int node_rank, bool every_rank_has_one) {
  const auto count = static_cast<int>(here.devices.size());
  if (wanted == "cpu") return {};
  if (wanted == "auto") {
    if (!every_rank_has_one || count == 0)
      return {{},
              fmt::format("device auto: cpu ({})", count == 0 ? here.why_none : "not every rank has a CUDA device")};
    const int index = node_rank % count;
    return {index, fmt::format("device auto: cuda:{} ({}; every rank has a CUDA device)", index,
                               here.devices[static_cast<std::size_t>(index)].name)};
  }
  if (count == 0) throw InputError("", "--device", "cpu or auto", fmt::format("{} ({})", wanted, here.why_none));
  if (wanted == "cuda") return {node_rank % count, {}};
  const int index = std::stoi(wanted.substr(std::string("cuda:").size()));
  if (index >= count)
    throw InputError("", "--device", count == 1 ? "cuda:0" : fmt::format("cuda:0 to cuda:{}", count - 1), wanted);
  return {index, {}};
}

}  // namespace fedpdpo
