// The backbone's memory: where each part lies, and filling it from a checkpoint.
#include "fedpdpo/model/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "family.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/io/json.hpp"
#include "rotary_tables.hpp"
#include "stored_floats.hpp"

namespace fedpdpo {
namespace {

/// Hands out the parts of the block of memory in a fixed order; with a null memory it only measures.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  ConstView take(std::int64_t rows, std::int64_t cols, DType dtype) {
    offset_ = (offset_ + 63) / 64 * 64;
    ConstView view{memory_ ? memory_ + offset_ : nullptr, rows, cols, cols, dtype};
    offset_ += static_cast<std::size_t>(rows * cols) * dtype_size(dtype);
    return view;
  }
  std::size_t bytes() const { return (offset_ + 63) / 64 * 64; }

 private:
  std::byte* memory_;
  std::size_t offset_ = 0;
};

bool has_bias(const ModelConfig& c, Block block) {
  if (block == Block::qkv) return c.attention_bias;
  if (block == Block::output) return c.output_bias;
  return c.mlp_bias;
}

Weights carve(const ModelConfig& c, DType dtype, Carver& carver) {
  Weights w;
  const bool layer_norm = c.norm == NormKind::layer;
  const std::int64_t d = c.hidden_size;
  w.embedding = carver.take(c.vocab_size, d, dtype);
  if (c.position == PositionKind::learned) w.position_embedding = carver.take(c.max_positions, d, DType::f32);
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    LayerWeights& l = w.layers.emplace_back();
    l.attention_norm = carver.take(1, d, DType::f32);
    if (layer_norm) l.attention_norm_bias = carver.take(1, d, DType::f32);
    l.mlp_norm = carver.take(1, d, DType::f32);
    if (layer_norm) l.mlp_norm_bias = carver.take(1, d, DType::f32);
    if (c.head_norm) l.head_norm = carver.take(1, c.query_key_width(), DType::f32);
    for (int b = 0; b < num_blocks; ++b) {
      auto [rows, cols] = c.block_shape(static_cast<Block>(b));
      l.weight[static_cast<std::size_t>(b)] = carver.take(rows, cols, dtype);
      if (has_bias(c, static_cast<Block>(b))) l.bias[static_cast<std::size_t>(b)] = carver.take(1, rows, DType::f32);
    }
  }
  w.final_norm = carver.take(1, d, DType::f32);
  if (layer_norm) w.final_norm_bias = carver.take(1, d, DType::f32);
  w.head = c.tied_head ? w.embedding : carver.take(c.vocab_size, d, dtype);
  if (c.rotary_dim > 0) {
    w.cos = carver.take(c.table_positions(), c.rotary_dim / 2, DType::f32);
    w.sin = carver.take(c.table_positions(), c.rotary_dim / 2, DType::f32);
  }
  return w;
}

void store(ConstView target, std::size_t index, float value) {
  void* data = const_cast<void*>(target.data);
  if (target.dtype == DType::f32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] = to_bf16(value);
  }
}

class Loader {
 public:
  explicit Loader(const ModelFolder& folder) : folder_(folder), names_(family_of(folder.config()).names()) {
    // Checkpoints of the bare model (GPT-2's first ones) leave the prefix out.
    prefix_ = folder.contains(names_.prefix + names_.embedding + ".weight") ? names_.prefix : "";
  }

  const FamilyNames& names() const { return names_; }
  std::string layer(std::int64_t index) const { return fmt::format("{}{}.", names_.layers, index); }

  enum class Prefix : std::uint8_t { with, without };

  void copy(const std::string& name, ConstView target, Prefix prefix = Prefix::with) const {
    const StoredFloats source = find((prefix == Prefix::with ? prefix_ : "") + name, {target.rows, target.cols});
    for (std::size_t i = 0; i < static_cast<std::size_t>(target.size()); ++i) store(target, i, source[i]);
  }

  /// target (1, n) is the stored vector, as often as it fits.
  void copy_vector(const std::string& name, ConstView target, std::int64_t size) const {
    const StoredFloats source = find(prefix_ + name, {size});
    for (std::int64_t i = 0; i < target.cols; ++i)
      store(target, static_cast<std::size_t>(i), source[static_cast<std::size_t>(i % size)]);
  }
  void copy_vector(const std::string& name, ConstView target) const { copy_vector(name, target, target.cols); }

  /// The site's rows of its block.
  void copy_site(const std::string& layer, const LinearSite& site, const LayerWeights& l) const {
    const ModelConfig& c = folder_.config();
    const ConstView weight = l.weight[static_cast<std::size_t>(site.block)];
    const ConstView bias = l.bias[static_cast<std::size_t>(site.block)];
    const bool transposed = names_.linear_storage == LinearStorage::in_out;
    const std::int64_t rows = site.end - site.begin, cols = weight.cols;
    const StoredFloats source =
        find(prefix_ + layer + site.module + ".weight", transposed ? std::vector{cols, rows} : std::vector{rows, cols});
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t from = c.checkpoint_row(site, r), first = (site.begin + r) * cols;
      for (std::int64_t k = 0; k < cols; ++k)
        store(weight, static_cast<std::size_t>(first + k),
              source[static_cast<std::size_t>(transposed ? k * rows + from : from * cols + k)]);
    }
    if (bias.cols == 0) return;
    const StoredFloats biases = find(prefix_ + layer + site.module + ".bias", {rows});
    for (std::int64_t r = 0; r < rows; ++r)
      store(bias, static_cast<std::size_t>(site.begin + r),
            biases[static_cast<std::size_t>(c.checkpoint_row(site, r))]);
  }

 private:
  StoredFloats find(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const StoredTensor& tensor = folder_.tensor(name);
    if (tensor.shape != shape)
      throw InputError(folder_.file_of(name).string(), name, "shape " + shape_text(shape), shape_text(tensor.shape));
    if (!is_weight_type(tensor.type))
      throw InputError(folder_.file_of(name).string(), name, "dtype F32, BF16 or F16", stored_type_name(tensor.type));
    return {tensor.bytes.data(), tensor.type};
  }

  const ModelFolder& folder_;
  FamilyNames names_;
  std::string prefix_;
};

}  // namespace

ModelFolder::ModelFolder(const std::filesystem::path& folder) : path_(folder) {
  if (!std::filesystem::is_directory(folder))
    throw InputError(folder.string(), "--model", "a folder with config.json and model.safetensors", "no such folder");
  config_ = read_model_config(folder);
  std::vector<std::filesystem::path> paths;
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  const std::filesystem::path single = folder / "model.safetensors";
  if (std::filesystem::exists(single)) {
    paths.push_back(single);
  } else if (std::filesystem::exists(index)) {
    nlohmann::json json = read_json(index);
    if (!json.contains("weight_map") || !json["weight_map"].is_object())
      throw InputError(index.string(), "weight_map", "an object of tensor names and file names", "none");
    std::set<std::string> names;
    for (const auto& [tensor, file] : json["weight_map"].items()) {
      if (!file.is_string()) throw InputError(index.string(), "weight_map." + tensor, "a file name", file.type_name());
      names.insert(file.get<std::string>());
    }
    if (names.empty()) throw InputError(index.string(), "weight_map", "at least one tensor", "none");
    for (const std::string& name : names) paths.push_back(folder / name);
  } else {
    throw InputError(single.string(), "", "the model's weights", "no such file, and no model.safetensors.index.json");
  }
  for (const std::filesystem::path& path : paths) {
    files_.emplace_back(path);
    for (const auto& [name, tensor] : files_.back().tensors()) {
      if (!location_.emplace(name, files_.size() - 1).second)
        throw InputError(path.string(), name, "each tensor in one shard", "a second one");
    }
  }
  // Sizes that the weights cannot have are found here, before memory is asked for.
  std::int64_t stored = 0;
  for (const SafetensorsFile& file : files_)
    for (const auto& [name, tensor] : file.tensors()) stored += tensor.num_elements();
  const std::int64_t learned = config_.position == PositionKind::learned ? config_.max_positions : 0;
  const std::int64_t least = config_.layer_parameters() + (config_.vocab_size + learned) * config_.hidden_size;
  if (least > stored)
    throw InputError((folder / "config.json").string(), "sizes",
                     fmt::format("a model of at most the {} numbers that its weight files hold", stored),
                     fmt::format("one of {} or more", least));
  const std::filesystem::path tokenizer = folder / "tokenizer.json";
  if (!std::filesystem::exists(tokenizer))
    throw InputError(tokenizer.string(), "", "the model's tokenizer", "no such file");
  tokenizer_sha256_ = sha256_file(tokenizer);
}

std::string ModelFolder::content_hash() const {
  if (!content_hash_.empty()) return content_hash_;
  std::string all = sha256_file(path_ / "config.json");
  for (const SafetensorsFile& file : files_) all += sha256_file(file.path());
  return content_hash_ = sha256(std::as_bytes(std::span(all)));
}

const StoredTensor& ModelFolder::tensor(const std::string& name) const {
  auto found = location_.find(name);
  if (found == location_.end()) throw InputError(files_.front().path().string(), name, "a tensor of that name", "none");
  return files_[found->second].at(name);
}

const std::filesystem::path& ModelFolder::file_of(const std::string& name) const {
  return files_[location_.at(name)].path();
}

std::size_t weight_bytes(const ModelConfig& config, DType dtype) {
  Carver carver(nullptr);
  carve(config, dtype, carver);
  return carver.bytes();
}

Weights view_weights(const ModelConfig& config, DType dtype, std::byte* memory) {
  Carver carver(memory);
  return carve(config, dtype, carver);
}

Weights place_weights(Backend& backend, const ModelConfig& config, DType dtype, std::byte* host,
                      std::shared_ptr<void>& owner) {
  const Weights there = view_weights(config, dtype, host);
  if (backend.computes_on_host_memory()) return there;
  const std::size_t bytes = weight_bytes(config, dtype);
  owner = backend.allocate(bytes);
  backend.copy_to_device(owner.get(), host, bytes);
  Weights placed = view_weights(config, dtype, static_cast<std::byte*>(owner.get()));
  placed.head.host = there.head.data;
  return placed;
}

void load_weights(const ModelFolder& folder, DType dtype, std::byte* memory) {
  const ModelConfig& c = folder.config();
  const Weights w = view_weights(c, dtype, memory);
  const Loader loader(folder);
  const FamilyNames& names = loader.names();
  loader.copy(names.embedding + ".weight", w.embedding);
  if (w.position_embedding.rows > 0) loader.copy(names.position_embedding + ".weight", w.position_embedding);
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    const std::string prefix = loader.layer(i);
    loader.copy_vector(prefix + names.attention_norm + ".weight", l.attention_norm);
    loader.copy_vector(prefix + names.mlp_norm + ".weight", l.mlp_norm);
    if (c.norm == NormKind::layer) {
      loader.copy_vector(prefix + names.attention_norm + ".bias", l.attention_norm_bias);
      loader.copy_vector(prefix + names.mlp_norm + ".bias", l.mlp_norm_bias);
    }
    if (c.head_norm) {
      const std::int64_t queries = c.num_heads * c.head_dim;
      loader.copy_vector(prefix + names.query_norm + ".weight", l.head_norm.columns(0, queries), c.head_dim);
      loader.copy_vector(prefix + names.key_norm + ".weight", l.head_norm.columns(queries, l.head_norm.cols),
                         c.head_dim);
    }
    for (const LinearSite& site : c.sites) loader.copy_site(prefix, site, l);
  }
  loader.copy_vector(names.final_norm + ".weight", w.final_norm);
  if (c.norm == NormKind::layer) loader.copy_vector(names.final_norm + ".bias", w.final_norm_bias);
  if (!c.tied_head) loader.copy(names.head + ".weight", w.head, Loader::Prefix::without);
  if (w.cos.rows > 0) {
    const RotaryTables tables = rotary_tables(c);
    std::memcpy(const_cast<void*>(w.cos.data), tables.cos.data(), tables.cos.size() * sizeof(float));
    std::memcpy(const_cast<void*>(w.sin.data), tables.sin.data(), tables.sin.size() * sizeof(float));
  }
}

}  // namespace fedpdpo
