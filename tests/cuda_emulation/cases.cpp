// The backends of the emulated device: its threads in both orders.
#include "backend/fixture.hpp"
#include "emulation.hpp"
#include "fedpdpo/backend/cuda.hpp"
#include "train/parity_backend.hpp"

namespace fedpdpo {

std::vector<BackendCase> backend_cases() {
  return {{"emulated_cuda",
           [] {
             emulation::set_order(emulation::Order::forward);
             return make_cuda_backend({});
           }},
          {"emulated_cuda_backward", [] {
             emulation::set_order(emulation::Order::backward);
             return make_cuda_backend({});
           }}};
}

std::unique_ptr<Backend> test::make_parity_backend() {
  emulation::set_order(emulation::Order::forward);
  return make_cuda_backend({});
}

std::optional<std::size_t> test::graph_launches() { return emulation::counts().graph_launches; }

}  // namespace fedpdpo
