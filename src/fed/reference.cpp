// Computing, sharing and caching the reference log-probabilities.
#include "fedpdpo/fed/reference.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/safetensors.hpp"

namespace fedpdpo {
namespace {

/// Raised when kernels change what a log-probability comes out as.
constexpr int cache_version = 2;
constexpr std::int32_t chunk_rows = 1024;
constexpr double missing = std::numeric_limits<double>::quiet_NaN();

struct FileNumbers {
  std::vector<double> chosen, rejected;
};

std::filesystem::path cache_path(const ReferenceRequest& request, const PairFile& file) {
  const std::string key = fmt::format("fedpdpo reference {} {} {} {}", cache_version, request.model_hash,
                                      file.content_hash, request.arithmetic);
  return request.cache / ("reference-" + sha256(std::as_bytes(std::span(key))).substr(0, 32) + ".safetensors");
}

std::string checksum(std::span<const double> chosen, std::span<const double> rejected) {
  return sha256(std::as_bytes(chosen)) + sha256(std::as_bytes(rejected));
}

/// A cache that does not read is computed again: it holds nothing that cannot be had anew.
bool read_cache(const std::filesystem::path& path, FileNumbers& numbers) {
  if (!std::filesystem::exists(path)) return false;
  try {
    const SafetensorsFile file(path);
    const std::int64_t shape[] = {static_cast<std::int64_t>(numbers.chosen.size())};
    const auto chosen = file.read<double>("chosen", shape), rejected = file.read<double>("rejected", shape);
    const auto stored = file.metadata().find("sha256");
    if (stored == file.metadata().end() || stored->second != checksum(chosen, rejected))
      throw InputError(path.string(), "sha256", "the numbers that were written", "others");
    numbers.chosen.assign(chosen.begin(), chosen.end());
    numbers.rejected.assign(rejected.begin(), rejected.end());
    return true;
  } catch (const InputError& error) {
    log_warning(fmt::format("{}; the reference is computed again", error.what()));
    return false;
  }
}

void write_cache(const std::filesystem::path& path, const FileNumbers& numbers) {
  const TensorToWrite tensors[] = {tensor_to_write<double>("chosen", numbers.chosen),
                                   tensor_to_write<double>("rejected", numbers.rejected)};
  try {
    std::filesystem::create_directories(path.parent_path());
    write_safetensors(path, tensors,
                      {{"format", "fedpdpo-reference"}, {"sha256", checksum(numbers.chosen, numbers.rejected)}});
  } catch (const std::exception& error) {
    log_warning(fmt::format("the reference cache was not written ({}); the run goes on", error.what()));
  }
}

std::vector<bool> needed_pairs(const PairSet& pairs, const Partition& partition, std::size_t file) {
  std::vector<bool> needed(pairs.files[file].size(), false);
  for (const ClientShare& client : partition.clients)
    for (const auto& split : client.pairs)
      for (PairId id : split)
        if (id.file == file) needed[id.index] = true;
  return needed;
}

void share(const Communicator& world, FileNumbers& numbers) {
  // Each number was computed by one rank at most; the others hold NaN.
  std::vector<double> own(numbers.chosen);
  own.insert(own.end(), numbers.rejected.begin(), numbers.rejected.end());
  const auto all = world.all_gather(std::as_bytes(std::span(own)));
  std::vector<double> theirs(own.size());
  const std::size_t n = numbers.chosen.size();
  for (const auto& bytes : all) {
    std::memcpy(theirs.data(), bytes.data(), bytes.size());
    for (std::size_t i = 0; i < n; ++i) {
      if (!std::isnan(theirs[i])) numbers.chosen[i] = theirs[i];
      if (!std::isnan(theirs[n + i])) numbers.rejected[i] = theirs[n + i];
    }
  }
}

}  // namespace

std::filesystem::path default_reference_cache() {
  if (const char* own = std::getenv("FEDPDPO_CACHE"); own && *own) return own;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg && *xdg) return std::filesystem::path(xdg) / "fedpdpo";
  if (const char* home = std::getenv("HOME"); home && *home) return std::filesystem::path(home) / ".cache" / "fedpdpo";
  return {};
}

ReferenceLogProbs reference_log_probs(const Communicator& world, Backend& backend, const ModelConfig& config,
                                      const Weights& weights, const PairSet& pairs, const Partition& partition,
                                      const ReferenceRequest& request, ReferenceReport& report) {
  const auto start = std::chrono::steady_clock::now();
  AdapterOptions nothing;
  nothing.lora_rank = 0;
  const ParameterLayout layout(config, nothing, {});
  Policy policy(backend, config, weights, layout);
  const PackingOptions packing = policy.packing();
  ReferenceLogProbs result;
  PackedBatch batch;
  std::vector<PairScores> scores;
  std::size_t turn = 0;
  for (std::size_t f = 0; f < pairs.files.size(); ++f) {
    const PairFile& file = pairs.files[f];
    FileNumbers numbers{std::vector<double>(file.size(), missing), std::vector<double>(file.size(), missing)};
    // Rank 0 reads, so that all ranks see one state of the cache.
    std::int64_t cached = 0;
    if (world.rank() == 0 && !request.cache.empty()) cached = read_cache(cache_path(request, file), numbers) ? 1 : 0;
    world.broadcast(std::as_writable_bytes(std::span(&cached, 1)), 0);
    if (cached) {
      world.broadcast(std::as_writable_bytes(std::span(numbers.chosen)), 0);
      world.broadcast(std::as_writable_bytes(std::span(numbers.rejected)), 0);
    }
    const std::vector<bool> needed = needed_pairs(pairs, partition, f);
    std::vector<PairToPack> all(file.size());
    for (std::size_t i = 0; i < file.size(); ++i)
      all[i] = {{static_cast<std::uint32_t>(f), static_cast<std::uint32_t>(i)}, false};
    const std::vector<std::size_t> cuts = cut_by_rows(pairs, all, packing, chunk_rows);
    std::size_t num_computed = 0;
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
      bool wanted = false;
      for (std::size_t i = cuts[c]; i < cuts[c + 1]; ++i)
        wanted = wanted || (needed[i] && std::isnan(numbers.chosen[i]));
      if (!wanted) continue;
      num_computed += cuts[c + 1] - cuts[c];
      if (static_cast<int>(turn++ % static_cast<std::size_t>(world.size())) != world.rank()) continue;
      const MemberPairs member{0, std::span(all).subspan(cuts[c], cuts[c + 1] - cuts[c])};
      pack(pairs, std::span(&member, 1), packing, batch);
      scores.assign(batch.pairs.size(), {});
      policy.score(batch, {}, scores);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        numbers.chosen[cuts[c] + i] = scores[i].log_prob_chosen;
        numbers.rejected[cuts[c] + i] = scores[i].log_prob_rejected;
      }
    }
    if (num_computed > 0) {
      share(world, numbers);
      if (world.rank() == 0 && !request.cache.empty()) write_cache(cache_path(request, file), numbers);
    }
    for (std::size_t i = 0; i < file.size(); ++i)
      if (needed[i])
        check(std::isfinite(numbers.chosen[i]) && std::isfinite(numbers.rejected[i]),
              fmt::format("the pretrained model gives pair {} of {} no finite log-probability", i, file.path.string()));
    report.num_computed += num_computed;
    report.num_reused += file.size() - num_computed;
    result.chosen.push_back(std::move(numbers.chosen));
    result.rejected.push_back(std::move(numbers.rejected));
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace fedpdpo
