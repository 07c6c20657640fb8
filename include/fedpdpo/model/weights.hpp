// The frozen backbone: a HuggingFace folder's tensors, converted and fused into one block of memory (that the ranks of
// a node may share), and views of it by part. Nothing here is ever written after loading.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fedpdpo/backend/backend.hpp"
#include "fedpdpo/io/safetensors.hpp"
#include "fedpdpo/model/config.hpp"
#include "fedpdpo/model/head_weights.hpp"

namespace fedpdpo {

/// A model folder, opened and checked: config.json, model.safetensors or its shards (model.safetensors.index.json), and
/// the hash of tokenizer.json.
class ModelFolder {
 public:
  /// InputError names the file and what is wrong with it.
  explicit ModelFolder(const std::filesystem::path& folder);

  const std::filesystem::path& path() const { return path_; }
  const ModelConfig& config() const { return config_; }
  const std::string& tokenizer_sha256() const { return tokenizer_sha256_; }
  /// SHA-256 over config.json and all weight files: names what a reference log-probability depends on. Reads every
  /// byte.
  std::string content_hash() const;
  bool contains(const std::string& name) const { return location_.contains(name); }
  const StoredTensor& tensor(const std::string& name) const;
  /// The weight files, in the order of their names.
  std::span<const SafetensorsFile> files() const { return files_; }
  /// File that holds the tensor (for error lines).
  const std::filesystem::path& file_of(const std::string& name) const;

 private:
  std::filesystem::path path_;
  ModelConfig config_;
  std::string tokenizer_sha256_;
  std::vector<SafetensorsFile> files_;
  mutable std::string content_hash_;  // once it has been asked for
  std::map<std::string, std::size_t> location_;
};

struct LayerWeights {
  ConstView attention_norm, attention_norm_bias;  // (1, d)
  ConstView mlp_norm, mlp_norm_bias;              // (1, d)
  ConstView head_norm;                            // (1, (H + H_kv) head_dim): q's and k's for each head, or empty
  std::array<ConstView, num_blocks> weight;       // by Block: (N, K)
  std::array<ConstView, num_blocks> bias;         // (1, N), empty where there is none
};

struct Weights {
  ConstView embedding;           // (V, d)
  ConstView position_embedding;  // (P, d) or empty
  std::vector<LayerWeights> layers;
  ConstView final_norm, final_norm_bias;
  HeadWeights head;    // (V, d); the embedding where tied
  ConstView cos, sin;  // (P, rotary_dim / 2) or empty
};

/// Bytes that the backbone takes with matrices in `dtype` (norms, biases and rotary tables are fp32).
std::size_t weight_bytes(const ModelConfig& config, DType dtype);
/// Views of the parts inside `memory` (weight_bytes of them, 64-byte aligned).
Weights view_weights(const ModelConfig& config, DType dtype, std::byte* memory);
/// Views of a backbone that lies in host memory: in place where the backend computes there, otherwise of a copy on its
/// device, which `owner` then holds. The host's memory is needed as long as private heads start from it.
Weights place_weights(Backend& backend, const ModelConfig& config, DType dtype, std::byte* host,
                      std::shared_ptr<void>& owner);
/// Fills `memory` from the folder. InputError for a missing tensor, a wrong shape or a type that is not F32, BF16, F16.
void load_weights(const ModelFolder& folder, DType dtype, std::byte* memory);
/// Uniform numbers in mean +- bound, a quarter million of them repeated, into a contiguous matrix (f32 or bf16) in the
/// backend's memory: of the right size rather than independent, and made where they lie.
void fill_random(Backend& backend, View target, const StreamId& id, double mean, double bound);
/// Random weights of the config's shape in weight_bytes of the backend's own memory (bench).
Weights random_weights(Backend& backend, const ModelConfig& config, DType dtype, std::uint64_t seed, std::byte* memory);

}  // namespace fedpdpo
