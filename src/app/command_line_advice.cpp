// Options that are accepted though they change nothing. Grids give one value to many methods, so what depends on the
// method is said in a line and not refused; and only where it was given on the command line, as config files are
// shared.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "command_line_parts.hpp"
#include "fedpdpo/fed/registry.hpp"

namespace fedpdpo {
namespace {

std::vector<Group> lora_groups(const RunOptions& run) {
  return run.adapter.lora_rank > 0 ? std::vector{Group::lora_a, Group::lora_b} : std::vector<Group>{};
}

std::vector<Group> module_groups(const RunOptions& run) {
  std::vector<Group> groups;
  if (run.adapter.bottleneck > 0) groups.push_back(Group::bottleneck);
  if (run.adapter.head != HeadKind::frozen) groups.push_back(Group::head);
  if (run.adapter.reward_head) groups.push_back(Group::reward);
  return groups;
}

/// Whether the method trains any of the groups; it may take turns from round to round.
bool trains_any(const FederatedMethod& method, const std::vector<Group>& groups) {
  for (int round : {1, 2})
    for (const Phase& phase : method.plan_round(round, {Phase{1, groups}}))
      if (!phase.trainable.empty()) return true;
  return false;
}

class Advice {
 public:
  Advice(const CommandLine& line, const GivenByName& given)
      : line_(line), run_(line.run), given_(given), method_(find_method(line.run.method)->make(line.run)) {}

  std::vector<std::string> lines() {
    const bool runs = line_.command == Command::run || line_.command == Command::plan;
    if (runs) {
      rates();
      schedule();
      sampling();
      if (run_.privacy.clip > 0 && run_.privacy.noise_multiplier == 0)
        lines_.push_back("--dp-clip: without --dp-noise updates are clipped, but no epsilon holds");
    }
    const PartitionOptions& partition = run_.partition;
    const bool has_clients = runs || line_.command == Command::partition;
    if (has_clients && partition.flip_clients > 0 && std::llround(partition.flip_clients * partition.num_clients) == 0)
      lines_.push_back(fmt::format("--flip-clients: has no effect: a share of {} of {} client{} is none",
                                   partition.flip_clients, partition.num_clients,
                                   partition.num_clients == 1 ? "" : "s"));
    return std::move(lines_);
  }

 private:
  void rates() {
    if (!trains_lora()) no_effect("lr-shared", "no LoRA is trained");
    if (!trains_modules() && run_.adapter.personal_lora == PersonalLora::none)
      no_effect("lr-private", "there is no private module (--head, --bottleneck, --reward-head, --personal-lora)");
  }

  void schedule() {
    if (run_.schedule != LocalSchedule::alternate) return;
    if (!trains_modules())
      no_effect("schedule", "alternate takes a private module (--head, --bottleneck, --reward-head)");
    if (!trains_lora()) no_effect("schedule", "alternate takes a LoRA that is trained");
  }

  void sampling() {
    if (method_->data_scope() == DataScope::pooled && run_.participation != 1)
      no_effect("participation", "one model is trained on the pooled pairs");
  }

  bool trains_lora() const { return trains_any(*method_, lora_groups(run_)); }
  bool trains_modules() const { return trains_any(*method_, module_groups(run_)); }

  void no_effect(std::string_view option, std::string_view reason) {
    const auto entry = given_.find(option);
    if (entry == given_.end() || !entry->second.place.empty()) return;
    lines_.push_back(fmt::format("{}: has no effect with --method {}: {}", entry->second.label(), run_.method, reason));
  }

  const CommandLine& line_;
  const RunOptions& run_;
  const GivenByName& given_;
  std::unique_ptr<FederatedMethod> method_;
  std::vector<std::string> lines_;
};

}  // namespace

bool refit_trains(const RunOptions& run) {
  const std::unique_ptr<FederatedMethod> method = find_method(run.method)->make(run);
  const std::vector<Group> shared = method->shared_groups();
  std::vector<Group> groups = module_groups(run);
  for (Group group : lora_groups(run)) {
    const bool travels = std::find(shared.begin(), shared.end(), group) != shared.end();
    if (!travels || method->refits_everything() || run.adapter.personal_lora != PersonalLora::none)
      groups.push_back(group);
  }
  return trains_any(*method, groups);
}

std::vector<std::string> advice(const CommandLine& line, const GivenByName& given) {
  return Advice(line, given).lines();
}

}  // namespace fedpdpo
