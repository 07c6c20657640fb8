// Seconds by phase of a round.
#pragma once

#include <chrono>

namespace fedpdpo {

inline constexpr const char* phase_names[] = {"train", "reduce", "evaluate", "checkpoint", "total"};

/// Adds the seconds of its life to a sum.
class PhaseTimer {
 public:
  explicit PhaseTimer(double& sum) : sum_(sum) {}
  ~PhaseTimer() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  PhaseTimer(const PhaseTimer&) = delete;
  PhaseTimer& operator=(const PhaseTimer&) = delete;

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace fedpdpo
