// Model folders for tests: the golden ones, and changed copies of them.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fedpdpo/io/json.hpp"
#include "fedpdpo/io/safetensors.hpp"
#include "fedpdpo/model/weights.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {

inline std::filesystem::path golden_folder(const std::string& name) {
  return std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests" / "golden" / name;
}

/// A tensor that owns its bytes.
struct OwnTensor {
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;
};
using TensorMap = std::map<std::string, OwnTensor>;

inline TensorMap read_tensors(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  TensorMap all;
  for (const auto& [name, tensor] : file.tensors())
    all[name] = {tensor.type, tensor.shape, {tensor.bytes.begin(), tensor.bytes.end()}};
  return all;
}

inline void write_tensors(const std::filesystem::path& path, const TensorMap& all) {
  std::vector<TensorToWrite> list;
  for (const auto& [name, tensor] : all) list.push_back({name, tensor.type, tensor.shape, tensor.bytes});
  write_safetensors(path, list);
}

/// A copy of a golden model in a temporary folder, to be changed.
struct ModelCopy {
  explicit ModelCopy(const std::string& name) {
    for (const char* file : {"config.json", "model.safetensors", "tokenizer.json"})
      std::filesystem::copy_file(golden_folder(name) / file, folder / file);
  }

  void edit_config(const std::function<void(nlohmann::json&)>& edit) {
    nlohmann::json json = read_json(folder / "config.json");
    edit(json);
    write_text(folder / "config.json", json.dump());
  }
  void edit_tensors(const std::function<void(TensorMap&)>& edit) {
    TensorMap all = read_tensors(folder / "model.safetensors");
    edit(all);
    std::filesystem::remove(folder / "model.safetensors");
    write_tensors(folder / "model.safetensors", all);
  }

  TemporaryFolder folder;
};

/// The whole backbone as loaded, byte for byte.
inline std::vector<std::byte> loaded_bytes(const std::filesystem::path& folder, DType dtype = DType::f32) {
  const ModelFolder model(folder);
  const std::size_t size = weight_bytes(model.config(), dtype);
  // Aligned as NodeBuffer is, and cleared, so that padding compares equal.
  std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(64, size), std::free);
  std::memset(memory.get(), 0, size);
  load_weights(model, dtype, static_cast<std::byte*>(memory.get()));
  const auto* bytes = static_cast<const std::byte*>(memory.get());
  return {bytes, bytes + size};
}

/// A model loaded for use.
struct LoadedModel {
  explicit LoadedModel(const std::filesystem::path& path, DType dtype = DType::f32)
      : folder(path), backend(make_cpu_backend({})), memory(backend->allocate(weight_bytes(folder.config(), dtype))) {
    auto* bytes = static_cast<std::byte*>(memory.get());
    load_weights(folder, dtype, bytes);
    weights = view_weights(folder.config(), dtype, bytes);
  }

  ModelFolder folder;
  std::unique_ptr<Backend> backend;
  std::shared_ptr<void> memory;
  Weights weights;
};

}  // namespace fedpdpo::test
