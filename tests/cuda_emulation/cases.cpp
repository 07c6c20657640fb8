// The backends of the emulated device: its threads in both orders.
#include "backend/fixture.hpp"
#include "emulation.hpp"
#include "fedpdpo/backend/cuda.hpp"

namespace fedpdpo {

std::vector<BackendCase> backend_cases() {
  return {{"emulated_cuda",
           [] {
             emulation::set_order(emulation::Order::forward);
             return make_cuda_backend({});
           }},
          {"emulated_cuda_backward", [] {
             emulation::set_order(emulation::Order::backward);
             return make_cuda_backend({.check_outputs = false});
           }}};
}

}  // namespace fedpdpo
