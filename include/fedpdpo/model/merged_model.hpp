// A trained model as an ordinary HuggingFace folder: LoRA, what was added to the backbone and the private head are in
// the weights. What is not linear, the bottleneck, and what is no part of a language model, the reward head, cannot be.
#pragma once

#include <filesystem>

#include "fedpdpo/model/trained_model.hpp"
#include "fedpdpo/model/weights.hpp"

namespace fedpdpo {

/// Writes config.json, the weights in the base's shards and types, and copies of the tokenizer's files into `folder`,
/// which exists:
///   W = W0 + residual + s B A at every LoRA site, the head H, or H0 + Q P.
/// Sums are in double, rounded once. A head of its own unties a tied one (tie_word_embeddings becomes false). Names
/// are those of the whole model, also where the base's leave the prefix out.
void write_merged_model(const std::filesystem::path& folder, const ModelFolder& base, const TrainedModel& model);

}  // namespace fedpdpo
