// APFL (Deng et al. 2020, arXiv 2003.13461): the client's model is a mixture of its own LoRA and the shared one,
// parameter by parameter, and the share is learned.
//   shared: as the method (A, B)    the client's model: m = a v + (1 - a) y
//   local: K times: a step of the loss on y; v <- step by a grad f(m); a <- clamp(a - lr <v - y, grad f(m)>, 0, 1)
//   server: as the method; then m is mixed anew with y = x
// The layout's personal LoRA holds m; v and a are arrays of the client's state.
#include <algorithm>
#include <array>
#include <cmath>

#include "personalizations.hpp"

namespace fedpdpo {
namespace {

/// The two LoRAs of a buffer over all trainables, factor by factor.
struct Factor {
  View own, common, mixed;
};

/// v of the client's state; v = m where it is new.
std::array<Factor, 2> factors(const LocalStep& step) {
  const auto make = [&](const char* name, Group common, Group personal) {
    const View mixed = step.layout.part(step.values, personal);
    const bool known = step.state.contains(name);
    const View own = step.client_array(name, mixed.cols);
    if (!known) step.backend.copy(mixed, own);
    return Factor{own, step.layout.part(step.values, common), mixed};
  };
  return {make("apfl.a", Group::lora_a, Group::personal_a), make("apfl.b", Group::lora_b, Group::personal_b)};
}

}  // namespace

std::vector<Phase> Apfl::plan_round(std::vector<Phase> phases) const {
  std::vector<Phase> plan;
  for (Phase& phase : phases) {
    const bool lora = std::any_of(phase.trainable.begin(), phase.trainable.end(),
                                  [](Group group) { return group == Group::lora_a || group == Group::lora_b; });
    if (!lora) {
      phase.adapter = Adapter::personal;
      plan.push_back(phase);
      continue;
    }
    const Phase personal = with_personal_lora(phase);
    for (int step = 0; step < phase.steps; ++step) {
      plan.push_back({1, phase.trainable, Adapter::shared});
      plan.push_back({1, personal.trainable, Adapter::personal});
    }
  }
  return plan;
}

double Apfl::share(const LocalStep& step) const {
  const bool known = step.state.contains("apfl.share");
  const View array = step.client_array("apfl.share", 1);
  auto value = static_cast<float>(mix_);
  if (known) {
    step.backend.copy_to_host(&value, array.data, sizeof(value));
  } else {
    step.backend.copy_to_device(array.data, &value, sizeof(value));
  }
  return value;
}

void Apfl::adjust_gradient(const LocalStep& step) const {
  const double a = share(step);
  const std::array<Factor, 2> both = factors(step);
  constexpr Group personal[] = {Group::personal_a, Group::personal_b};
  const View gradients[] = {step.layout.part(step.gradient, personal[0]), step.layout.part(step.gradient, personal[1])};
  double slope = 0;
  for (std::size_t i = 0; i < both.size(); ++i)
    if (step.trains(personal[i]))  // else its gradient is garbage
      slope += step.backend.dot(both[i].own, gradients[i]) - step.backend.dot(both[i].common, gradients[i]);
  if (!std::isfinite(slope)) return;  // the trainer leaves such a step out
  for (std::size_t i = 0; i < both.size(); ++i) {
    // The optimizer moves v, from its own gradient.
    step.backend.copy(both[i].own, both[i].mixed);
    step.backend.axpy(static_cast<float>(a), gradients[i], gradients[i], Write::overwrite);
  }
  const auto moved = static_cast<float>(std::clamp(a - step.learning_rate_private * slope, 0.0, 1.0));
  step.backend.copy_to_device(step.client_array("apfl.share", 1).data, &moved, sizeof(moved));
}

void Apfl::adjust_step(const LocalStep& step, Adapter adapter) const {
  if (adapter == Adapter::personal)
    for (const Factor& f : factors(step)) step.backend.copy(f.mixed, f.own);
  mix(step);
}

void Apfl::after_exchange(const LocalStep& step) const { mix(step); }

std::size_t Apfl::client_state_size(const ParameterLayout& layout) const {
  return layout.range(Group::personal_a).size() + layout.range(Group::personal_b).size() + 1;
}

void Apfl::mix(const LocalStep& step) const {
  const auto a = static_cast<float>(share(step));
  for (const Factor& f : factors(step)) {
    step.backend.axpy(a, f.own, f.mixed, Write::overwrite);
    step.backend.axpy(1 - a, f.common, f.mixed, Write::accumulate);
  }
}

}  // namespace fedpdpo
