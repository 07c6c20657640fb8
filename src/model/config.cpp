// Reading and checking config.json, and the bench's named shapes.
#include "fedpdpo/model/config.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "family.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"

namespace fedpdpo {
namespace {

void require(bool condition, const std::filesystem::path& file, std::string_view field, std::string_view expected,
             std::int64_t found) {
  if (!condition) throw InputError(file.string(), field, expected, fmt::format("{}", found));
}

void check_config(const ModelConfig& c, const std::filesystem::path& file) {
  // Far above any model, and small enough that no product of them overflows.
  struct Bound {
    const char* field;
    std::int64_t value;
    int log2;
  };
  const Bound bounds[] = {{"vocab_size", c.vocab_size, 24},
                          {"hidden size", c.hidden_size, 20},
                          {"intermediate size", c.intermediate_size, 20},
                          {"number of layers", c.num_layers, 14},
                          {"number of heads", c.num_heads, 20},
                          {"number of key-value heads", c.num_kv_heads, 20},
                          {"head_dim", c.head_dim, 20},
                          {"maximum positions", c.max_positions, 30}};
  for (const Bound& bound : bounds)
    require(bound.value > 0 && bound.value <= (std::int64_t{1} << bound.log2), file, bound.field,
            fmt::format("a whole number from 1 to 2^{}", bound.log2), bound.value);
  require(c.num_heads * c.head_dim <= (std::int64_t{1} << 20), file, "heads times head_dim", "at most 2^20",
          c.num_heads * c.head_dim);
  require(c.num_heads % c.num_kv_heads == 0, file, "number of key-value heads", "a divisor of the number of heads",
          c.num_kv_heads);
  require(c.rotary_dim % 2 == 0, file, c.rotary_dim == c.head_dim ? "head_dim" : "rotary part of head_dim",
          "an even number", c.rotary_dim);
  if (c.position == PositionKind::learned)
    require(c.num_heads * c.head_dim == c.hidden_size, file, "hidden size", "a multiple of the number of heads",
            c.hidden_size);
}

std::string known_architectures() {
  std::string known;
  for (const Family& family : families()) known += (known.empty() ? "" : ", ") + std::string(family.architecture);
  return "one of " + known;
}

ModelConfig shape_of(const Family& family, std::int64_t d, std::int64_t layers, std::int64_t heads, std::int64_t kv,
                     std::int64_t inter, std::int64_t vocab, bool tied) {
  nlohmann::json json = {{"vocab_size", vocab},          {"hidden_size", d},
                         {"intermediate_size", inter},   {"num_hidden_layers", layers},
                         {"num_attention_heads", heads}, {"num_key_value_heads", kv},
                         {"tie_word_embeddings", tied}};
  ModelConfig config;
  config.family = family.model_type;
  family.read(json, "named shape", config);
  config.sites = family.sites(config);
  return config;
}

}  // namespace

std::array<std::int64_t, 2> ModelConfig::block_shape(Block block) const {
  switch (block) {
    case Block::qkv:
      return {qkv_width(), hidden_size};
    case Block::output:
      return {hidden_size, num_heads * head_dim};
    case Block::up:
      return {up_width(), hidden_size};
    case Block::down:
      return {hidden_size, intermediate_size};
  }
  contract_violation("block", "unknown block", std::source_location::current());
}

std::int64_t ModelConfig::checkpoint_row(const LinearSite& site, std::int64_t row) const {
  check(row >= 0 && row < site.end - site.begin, "checkpoint_row: a row of the site");
  if (site.order == RowOrder::as_here) return row;
  const std::int64_t width = num_heads * head_dim;
  const std::int64_t part = row / width, head = row % width / head_dim;  // part: q, k or v
  return (head * 3 + part) * head_dim + row % head_dim;
}

std::int64_t ModelConfig::layer_parameters() const {
  std::int64_t per_layer = 0;
  for (int b = 0; b < num_blocks; ++b) {
    auto [rows, cols] = block_shape(static_cast<Block>(b));
    per_layer += rows * cols;
  }
  return per_layer * num_layers;
}

ModelConfig read_model_config(const std::filesystem::path& folder) {
  std::filesystem::path file = folder / "config.json";
  nlohmann::json json = read_json(file);
  if (!json.is_object()) throw InputError(file.string(), "", "a JSON object", std::string(json.type_name()));
  std::string architecture;
  if (json.contains("architectures") && json["architectures"].is_array() && !json["architectures"].empty() &&
      json["architectures"][0].is_string())
    architecture = json["architectures"][0].get<std::string>();
  std::string type = json_optional<std::string>(json, "model_type", file).value_or("");
  for (const Family& family : families()) {
    if (architecture.empty() ? type != family.model_type : architecture != family.architecture) continue;
    ModelConfig config;
    config.family = std::string(family.model_type);
    family.read(json, file, config);
    check_config(config, file);
    config.sites = family.sites(config);
    return config;
  }
  throw InputError(file.string(), "architectures", known_architectures(),
                   architecture.empty() ? (type.empty() ? "none" : "model_type " + type) : architecture);
}

ModelConfig named_shape(std::string_view name) {
  if (name == "smollm2-135m") return shape_of(llama_family, 576, 30, 9, 3, 1536, 49152, true);
  if (name == "smollm2-360m") return shape_of(llama_family, 960, 32, 15, 5, 2560, 49152, true);
  if (name == "llama-3.2-1b") return shape_of(llama_family, 2048, 16, 32, 8, 8192, 128256, true);
  if (name == "llama-7b") return shape_of(llama_family, 4096, 32, 32, 32, 11008, 32000, false);
  if (name == "qwen2.5-0.5b") return shape_of(qwen2_family, 896, 24, 14, 2, 4864, 151936, true);
  if (name == "pythia-160m") return shape_of(gpt_neox_family, 768, 12, 12, 12, 3072, 50304, false);
  std::string known;
  for (const std::string& shape : named_shapes()) known += (known.empty() ? "" : ", ") + shape;
  throw InputError("", "--shape", "one of " + known, name);
}

std::vector<std::string> named_shapes() {
  return {"smollm2-135m", "smollm2-360m", "llama-3.2-1b", "llama-7b", "qwen2.5-0.5b", "pythia-160m"};
}

}  // namespace fedpdpo
