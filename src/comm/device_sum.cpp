// Sums in device memory. The large buffers live for one sum: between the rounds the memory is training's.
#include "fedpdpo/comm/device_sum.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {

DeviceSum::DeviceSum(Backend& backend, std::vector<std::size_t> block_offsets, NcclCommunicator* nccl)
    : backend_(backend), blocks_(checked_blocks(std::move(block_offsets))), nccl_(nccl) {
  check(blocks_.back() <= INT32_MAX, "a sum of at most 2^31 - 1 numbers");
  const std::vector<std::int32_t> offsets(blocks_.begin(), blocks_.end());
  offsets_ = Tensor(backend_, 1, static_cast<std::int64_t>(offsets.size()), DType::i32);
  exponents_ = Tensor(backend_, 1, static_cast<std::int64_t>(offsets.size()) - 1, DType::i32);
  backend_.copy_to_device(offsets_.view().data, offsets.data(), offsets_.bytes());
}

ConstView DeviceSum::on_device(const SumTerm& term) {
  if (term.on_device.data != nullptr) {
    check(term.on_device.rows == 1 && term.on_device.cols == size(), "a contribution has the sum's length");
    return term.on_device;
  }
  check(term.host.size() == blocks_.back(), "a contribution has the sum's length");
  if (!staged_) staged_ = Tensor(backend_, 1, size());
  backend_.copy_to_device(staged_.view().data, term.host.data(), term.host.size_bytes());
  return staged_.view();
}

std::vector<std::vector<float>> DeviceSum::peaks(std::span<const SumTerm> terms) {
  const std::size_t num_blocks = blocks_.size() - 1;
  const auto cols = static_cast<std::int64_t>(num_blocks);
  const Tensor found(backend_, static_cast<std::int64_t>(terms.size()), cols);
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    backend_.block_peaks(on_device(terms[i]), offsets_.view(), found.view().row_range(row, row + 1));
  }
  std::vector<float> all(terms.size() * num_blocks);
  backend_.copy_to_host(all.data(), found.view().data, found.bytes());
  std::vector<std::vector<float>> peaks;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(i * num_blocks);
    peaks.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(num_blocks));
  }
  return peaks;
}

void DeviceSum::exact(const Communicator& group, std::span<const SumTerm> terms,
                      std::span<const std::vector<float>> peaks, int num_terms, std::span<float> result) {
  check(peaks.size() == terms.size(), "peaks of every term");
  SumScales scales(blocks_.size() - 1, num_terms);
  for (std::size_t i = 0; i < terms.size(); ++i)
    check(scales.observe(peaks[i], terms[i].weight), "a contribution stopped being finite");
  scales.agree(group);
  backend_.copy_to_device(exponents_.view().data, scales.exponents().data(), exponents_.bytes());
  const Tensor sums(backend_, 1, size(), DType::i64), rounded(backend_, 1, size());
  for (const SumTerm& term : terms)
    backend_.add_terms(on_device(term), term.weight, offsets_.view(), exponents_.view(), scales.coding(), sums.view());
  reduce(sums.view());
  backend_.round_sums(sums.view(), offsets_.view(), exponents_.view(), scales.coding(), rounded.view());
  to_host(rounded.view(), result);
}

void DeviceSum::fast(std::span<const SumTerm> terms, std::span<float> result) {
  const Tensor sums(backend_, 1, size());
  for (const SumTerm& term : terms)
    backend_.axpy(static_cast<float>(term.weight), on_device(term), sums.view(), Write::accumulate);
  reduce(sums.view());
  to_host(sums.view(), result);
}

void DeviceSum::reduce(View sums) {
  if (nccl_ != nullptr) nccl_->sum(sums);
}

void DeviceSum::to_host(ConstView values, std::span<float> result) {
  check(result.size() == blocks_.back(), "the result has the sum's length");
  if (nccl_ != nullptr) nccl_->wait();
  backend_.copy_to_host(result.data(), values.data, result.size_bytes());
  staged_ = {};
}

}  // namespace fedpdpo
