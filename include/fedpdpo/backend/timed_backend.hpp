// Where a step's time goes, and what it has to do: a backend in front of another one that waits for every operation and
// adds up its seconds, bytes and arithmetic, and one that counts them and computes nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "fedpdpo/backend/backend.hpp"

namespace fedpdpo {

struct OperationTime {
  double seconds = 0;
  std::int64_t calls = 0;
  double bytes = 0;  ///< of its arguments, each read or written once: what it must move where no cache keeps any of it
  double operations = 0;  ///< floating-point, of products and attention alone; a backward's as the mathematics has them
};
/// By operation; frozen products by the shape of their weight, too: "linear 1536x576".
using OperationTimes = std::map<std::string, OperationTime>;

/// Hands everything to `inner`, whose memory it shares, and adds to `times`. Waiting for each operation leaves no gaps
/// to hide anything in: the sum is more than an undisturbed step takes. Both must outlive it.
std::unique_ptr<Backend> make_timed_backend(Backend& inner, OperationTimes& times);

/// A device of bf16 activations on which nothing is computed and everything that is read is zero: what a step would ask
/// of a real one, for models that fit none.
std::unique_ptr<Backend> make_counting_backend(OperationTimes& times);

}  // namespace fedpdpo
