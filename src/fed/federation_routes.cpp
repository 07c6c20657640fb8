// The round loop: where the groups' sums are made, and the record of it.
#include <fmt/format.h>

#include <sstream>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/federation.hpp"

namespace fedpdpo {
namespace {

/// Groups by the text of their route, on every rank; collective. A line of `own` is a group's number and its text.
std::map<std::string, std::vector<int>> gather_routes(const Communicator& world, const std::string& own) {
  std::map<std::string, std::vector<int>> groups_of;
  for (const auto& part : world.all_gather(std::as_bytes(std::span(own)))) {
    std::istringstream lines(std::string(reinterpret_cast<const char*>(part.data()), part.size()));
    int group = 0;
    for (std::string text; lines >> group && std::getline(lines >> std::ws, text);) groups_of[text].push_back(group);
  }
  for (auto& [text, groups] : groups_of) std::sort(groups.begin(), groups.end());
  return groups_of;
}

}  // namespace

/// Collective. InputError on every rank where --aggregation nccl cannot be had.
void Federation::choose_routes() {
  if (layout_.shared_size() == 0) {
    routes_ = "none (nothing is shared)";
    return;
  }
  const Aggregation wanted = in_.options.aggregation;
  const std::string needs_host = needs_host_sums(in_.options);
  const RankDevice own = describe_rank(in_.world.rank(), in_.backend);
  std::string lines;
  const auto choose = [&](AggregationGroup& group) {
    group.use_route(wanted, own, needs_host, in_.backend);
    if (group.communicator().rank() == 0) lines += fmt::format("{} {}\n", group.index(), group.route().text());
  };
  for (const auto& group : groups_) choose(*group);
  if (everyone_) choose(*everyone_);

  const auto groups_of = gather_routes(in_.world, lines);
  std::string routes;
  for (const auto& [text, groups] : groups_of) {
    if (wanted == Aggregation::nccl && text.starts_with("host"))
      throw InputError("", "--aggregation", "auto or host", "nccl, but only this is possible: " + text);
    routes += (routes.empty() ? "" : "; ") + text;
    if (groups_of.size() > 1) routes += fmt::format(" for groups {}", fmt::join(groups, " "));
  }
  if (routes != routes_) log_info("aggregation: " + routes);
  routes_ = routes;
}

}  // namespace fedpdpo
