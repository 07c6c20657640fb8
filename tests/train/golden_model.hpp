// A model of tests/golden with its pairs and cases: loads the HuggingFace folder, and serves golden.safetensors and
// golden.json (made by transformers and PEFT in double; see tests/golden/README.md).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fedpdpo/data/packing.hpp"
#include "fedpdpo/io/json.hpp"
#include "fedpdpo/io/safetensors.hpp"
#include "fedpdpo/model/layout.hpp"
#include "fedpdpo/model/weights.hpp"
#include "fedpdpo/train/policy.hpp"
#include "support/golden.hpp"

namespace fedpdpo::test {

struct GoldenModel {
  explicit GoldenModel(const std::string& name, DType dtype = DType::f32)
      : path(golden_folder() / name),
        folder(path),
        golden(path / "golden.safetensors"),
        json(read_json(path / "golden.json")),
        backend(make_cpu_backend({})),
        memory(backend->allocate(weight_bytes(folder.config(), dtype))) {
    auto* bytes = static_cast<std::byte*>(memory.get());
    load_weights(folder, dtype, bytes);
    weights = view_weights(folder.config(), dtype, bytes);
    PairFile file;
    file.path = name;
    file.domain = "golden";
    file.vocab_size = folder.config().vocab_size;
    file.label_names = {"golden"};
    for (RaggedTokens* part : {&file.prompt, &file.chosen, &file.rejected}) part->offsets.push_back(0);
    const auto append = [](RaggedTokens& part, const nlohmann::json& ids) {
      for (const auto& id : ids) part.tokens.push_back(id.get<std::uint32_t>());
      part.offsets.push_back(part.tokens.size());
    };
    for (const auto& pair : json["pairs"]) {
      append(file.prompt, pair["prompt"]);
      append(file.chosen, pair["chosen"]);
      append(file.rejected, pair["rejected"]);
      file.label.push_back(0);
      file.split.push_back(Split::train);
    }
    pairs.label_names = file.label_names;
    pairs.global_label = {file.label};
    pairs.files.push_back(std::move(file));
  }

  /// The modules that a case has.
  AdapterOptions options(const std::string& name) const {
    const nlohmann::json& c = json["cases"][name];
    AdapterOptions o;
    o.lora_rank = c["lora"].get<bool>() ? json["lora"]["rank"].get<int>() : 0;
    o.lora_alpha = json["lora"]["alpha"].get<double>();
    const std::string bottleneck = c["bottleneck"], head = c["head"], pool = c["pool"];
    o.bottleneck = bottleneck == "none" ? 0 : json["bottleneck_width"].get<int>();
    o.bottleneck_kind = bottleneck == "gated" ? BottleneckKind::gated : BottleneckKind::residual;
    o.head = head == "full" ? HeadKind::full : (head == "lowrank" ? HeadKind::lowrank : HeadKind::frozen);
    o.head_rank = json["head_rank"].get<int>();
    o.reward_head = pool != "none";
    o.reward_pool = pool == "mean" ? RewardPool::mean : RewardPool::last;
    const std::string gradient = c.value("reward_gradient", "all");
    o.reward_gradient = gradient == "private" ? RewardGradient::private_only
                                              : (gradient == "none" ? RewardGradient::none : RewardGradient::all);
    return o;
  }

  LossOptions loss(const std::string& name) const {
    LossOptions o;
    o.beta = json["beta"].get<double>();
    const bool pdpo = json["cases"][name]["loss"] == "pdpo";
    o.lambda = pdpo ? json["lambda"].get<double>() : 0;
    o.mu = pdpo ? json["mu"].get<double>() : 0;
    return o;
  }

  /// A parameter's numbers under golden.safetensors' `prefix`, the rows of LoRA's B in the layout's order.
  template <class T>
  std::vector<T> read(const std::string& prefix, const Parameter& p) const {
    const std::span<const T> stored = golden.read<T>(prefix + p.name);
    if (p.group != Group::lora_b || stored.size() != p.size()) return {stored.begin(), stored.end()};
    const ModelConfig& config = folder.config();
    std::vector<T> values(stored.size());
    for (std::int64_t row = 0; row < p.rows; ++row)
      std::copy_n(
          stored.begin() + config.checkpoint_row(config.sites.at(static_cast<std::size_t>(p.site)), row) * p.cols,
          p.cols, values.begin() + row * p.cols);
    return values;
  }

  /// Fills a slot's values from the golden parameters.
  void fill(const ParameterLayout& layout, std::span<float> values) const {
    for (const Parameter& p : layout.parameters()) {
      const auto source = read<float>("param/", p);
      ASSERT_EQ(source.size(), p.size()) << p.name;
      std::copy(source.begin(), source.end(), values.begin() + static_cast<std::ptrdiff_t>(p.offset));
    }
  }

  std::vector<PairToPack> all_pairs() const {
    std::vector<PairToPack> all;
    for (std::uint32_t i = 0; i < pairs.files[0].size(); ++i) all.push_back({{0, i}, false});
    return all;
  }

  std::filesystem::path path;
  ModelFolder folder;
  SafetensorsFile golden;
  nlohmann::json json;
  std::unique_ptr<Backend> backend;
  std::shared_ptr<void> memory;
  Weights weights;
  PairSet pairs;
};

/// ||found - expected|| / ||expected||, both over all elements.
template <class A, class B>
double relative_error(const A& found, const B& expected) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double e = static_cast<double>(expected[i]), d = static_cast<double>(found[i]) - e;
    difference += d * d;
    norm += e * e;
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace fedpdpo::test
