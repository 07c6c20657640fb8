// The choice between host and device.
#include "fedpdpo/fed/aggregation_route.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "fedpdpo/comm/nccl.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/fed/option_names.hpp"

namespace fedpdpo {
namespace {

/// The kernel's boot id, which containers of a node share; the host's name where there is none.
std::string this_node() {
  std::string id;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  if (std::getline(file, id) && !id.empty()) return id;
  std::array<char, 256> name{};
  (void)gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string pack(const RankDevice& d) {
  std::string bytes;
  for (const std::string& field : {std::to_string(d.rank), d.backend, d.node, d.device, d.nccl, d.why_no_nccl})
    bytes.append(field).push_back('\0');
  return bytes;
}

RankDevice unpack(std::span<const std::byte> bytes) {
  std::vector<std::string> fields(1);
  for (const std::byte b : bytes) {
    if (b == std::byte{0}) {
      fields.emplace_back();
    } else {
      fields.back().push_back(static_cast<char>(b));
    }
  }
  check(fields.size() == 7, "a rank's description has six fields");
  return {std::stoi(fields[0]), fields[1], fields[2], fields[3], fields[4], fields[5]};
}

}  // namespace

RankDevice describe_rank(int rank, const Backend& backend) {
  RankDevice own{rank, backend.name(), this_node(), backend.device_identity(), {}, {}};
  // Where nothing lies on a device, the library is not even looked for.
  if (own.device.empty()) return own;
  own.nccl = nccl_status().version;
  own.why_no_nccl = nccl_status().why_not;
  return own;
}

std::vector<RankDevice> gather_devices(const Communicator& group, const RankDevice& own) {
  const std::string bytes = pack(own);
  std::vector<RankDevice> ranks;
  for (const auto& part : group.all_gather(std::as_bytes(std::span(bytes)))) ranks.push_back(unpack(part));
  return ranks;
}

std::string AggregationRoute::text() const {
  switch (place) {
    case SumPlace::host:
      return fmt::format("host ({})", why);
    case SumPlace::one_device:
      return "device (one rank)";
    case SumPlace::all_devices:
      return "nccl " + why;
  }
  return {};
}

AggregationRoute choose_route(Aggregation wanted, std::span<const RankDevice> ranks, const std::string& needs_host) {
  const auto host = [](std::string why) { return AggregationRoute{SumPlace::host, std::move(why)}; };
  if (wanted == Aggregation::host) return host("--aggregation host");
  if (!needs_host.empty()) return host(needs_host);
  for (const RankDevice& r : ranks)
    if (r.device.empty()) return host(fmt::format("rank {} computes on its {}", r.rank, r.backend));
  if (ranks.size() == 1) return {SumPlace::one_device, {}};
  std::map<std::pair<std::string, std::string>, int> owner;
  for (const RankDevice& r : ranks) {
    const auto [found, is_new] = owner.try_emplace({r.node, r.device}, r.rank);
    if (!is_new) return host(fmt::format("ranks {} and {} share the device {}", found->second, r.rank, r.device));
  }
  for (const RankDevice& r : ranks)
    if (!r.why_no_nccl.empty()) return host(fmt::format("rank {} has no NCCL: {}", r.rank, r.why_no_nccl));
  for (const RankDevice& r : ranks)
    if (r.nccl != ranks.front().nccl)
      return host(
          fmt::format("ranks {} and {} have NCCL {} and {}", ranks.front().rank, r.rank, ranks.front().nccl, r.nccl));
  return {SumPlace::all_devices, ranks.front().nccl};
}

std::string needs_host_sums(const RunOptions& options) {
  if (options.compression.kind != Compression::none)
    return fmt::format("--compress {} is done on the host", name_of(compression_names, options.compression.kind));
  if (options.privacy.clip > 0) return "--dp-clip is done on the host";
  return {};
}

}  // namespace fedpdpo
