// Buffers of the hosted clients and the packing of a round's sums.
#include "fedpdpo/train/client_state.hpp"

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

std::array<double, RoundSums::num_fields> RoundSums::pack() const {
  return {loss, correct, pairs, tokens, steps, gradient_norm_shared, gradient_norm_private, finite ? 1.0 : 0.0};
}

RoundSums RoundSums::unpack(std::span<const double> f) {
  check(f.size() == num_fields, "RoundSums: another number of fields");
  return {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7] != 0};
}

ClientBuffers::ClientBuffers(Backend& backend, const ParameterLayout& layout, int num_slots)
    : size_(static_cast<std::int64_t>(layout.size())), stride_((size_ + 15) / 16 * 16) {
  if (num_slots == 0 || size_ == 0) return;
  values_ = Tensor(backend, num_slots, stride_);
  first_ = Tensor(backend, num_slots, stride_);
  second_ = Tensor(backend, num_slots, stride_);
}

View ClientBuffers::row(const Tensor& tensor, const ClientState& client) const {
  check(client.slot >= 0 && client.slot < tensor.rows(), "a client without a slot");
  return {tensor.view().f32() + client.slot * stride_, 1, size_, size_, DType::f32};
}

}  // namespace fedpdpo
