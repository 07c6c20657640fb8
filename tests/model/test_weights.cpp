// Reading checkpoints: sharded, with and without prefix, in other types, and everything that can be wrong with them.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "fedpdpo/model/weights.hpp"
#include "model_kit.hpp"

namespace fedpdpo::test {
namespace {

/// Two shards and an index, as save_pretrained writes them.
void shard(ModelCopy& copy) {
  const TensorMap all = read_tensors(copy.folder / "model.safetensors");
  TensorMap parts[2];
  nlohmann::json index;
  int i = 0;
  for (const auto& [name, tensor] : all) {
    const int part = i++ % 2;
    parts[part][name] = tensor;
    index["weight_map"][name] = part == 0 ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  write_tensors(copy.folder / "model-00001-of-00002.safetensors", parts[0]);
  write_tensors(copy.folder / "model-00002-of-00002.safetensors", parts[1]);
  write_text(copy.folder / "model.safetensors.index.json", index.dump());
  std::filesystem::remove(copy.folder / "model.safetensors");
}

TEST(ModelFolder, ShardsEqualTheSingleFile) {
  for (const char* name : {"tiny_llama", "tiny_gpt2"}) {
    ModelCopy copy(name);
    shard(copy);
    EXPECT_EQ(loaded_bytes(copy.folder.path()), loaded_bytes(golden_folder(name))) << name;
    EXPECT_EQ(loaded_bytes(copy.folder.path(), DType::bf16), loaded_bytes(golden_folder(name), DType::bf16)) << name;
    EXPECT_NE(ModelFolder(copy.folder.path()).content_hash(), ModelFolder(golden_folder(name)).content_hash());
  }
}

TEST(ModelFolder, ContentHashSeesEveryByteOfConfigAndWeights) {
  ModelCopy copy("tiny_llama");
  const std::string hash = ModelFolder(copy.folder.path()).content_hash();
  EXPECT_EQ(hash, ModelFolder(golden_folder("tiny_llama")).content_hash());
  EXPECT_EQ(hash.size(), 64u);
  copy.edit_tensors([](TensorMap& all) { all["model.norm.weight"].bytes[5] ^= std::byte{1}; });
  EXPECT_NE(ModelFolder(copy.folder.path()).content_hash(), hash);
  ModelCopy other("tiny_llama");
  other.edit_config([](nlohmann::json& j) { j["rms_norm_eps"] = 2e-5; });
  EXPECT_NE(ModelFolder(other.folder.path()).content_hash(), hash);
  ModelCopy tokenizer("tiny_llama");
  write_text(tokenizer.folder / "tokenizer.json", "{}");
  EXPECT_EQ(ModelFolder(tokenizer.folder.path()).content_hash(), hash) << "the tokenizer has a hash of its own";
  EXPECT_NE(ModelFolder(tokenizer.folder.path()).tokenizer_sha256(),
            ModelFolder(golden_folder("tiny_llama")).tokenizer_sha256());
}

/// GPT-2's first checkpoints: no "transformer." and the causal masks stored as buffers.
TEST(ModelFolder, Gpt2WithoutPrefixAndWithBuffers) {
  ModelCopy copy("tiny_gpt2");
  copy.edit_tensors([](TensorMap& all) {
    TensorMap renamed;
    for (auto& [name, tensor] : all) renamed[name.substr(std::string("transformer.").size())] = tensor;
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = "h." + std::to_string(layer) + ".attn.";
      renamed[prefix + "bias"] = {StoredType::u8, {1, 1, 128, 128}, std::vector<std::byte>(128 * 128)};
      renamed[prefix + "masked_bias"] = {StoredType::f32, {}, std::vector<std::byte>(4)};
    }
    all = renamed;
  });
  ASSERT_TRUE(ModelFolder(copy.folder.path()).contains("wte.weight"));
  ASSERT_FALSE(ModelFolder(copy.folder.path()).contains("transformer.wte.weight"));
  EXPECT_EQ(loaded_bytes(copy.folder.path()), loaded_bytes(golden_folder("tiny_gpt2")));
}

std::uint16_t half_bits(StoredType type, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (type == StoredType::bf16) return static_cast<std::uint16_t>(bits >> 16);
  // fp16 by truncation, normal numbers only.
  const std::uint32_t exponent = (bits >> 23) & 0xff;
  if (exponent < 113) return static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  return static_cast<std::uint16_t>(((bits >> 16) & 0x8000) | ((exponent - 112) << 10) | ((bits >> 13) & 0x3ff));
}

float from_bits(StoredType type, std::uint16_t half) {
  if (type == StoredType::bf16) return std::bit_cast<float>(std::uint32_t{half} << 16);
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(half & 0x8000 ? -magnitude : magnitude);
}

class StoredHalf : public testing::TestWithParam<StoredType> {};

/// A checkpoint in half precision loads to the very numbers that it stores.
TEST_P(StoredHalf, ConvertsExactly) {
  ModelCopy narrow("tiny_llama"), wide("tiny_llama");
  const auto each = [&](const std::function<void(OwnTensor&, std::span<const float>)>& change) {
    return [change](TensorMap& all) {
      for (auto& [name, tensor] : all) {
        std::vector<float> values(tensor.bytes.size() / 4);
        std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
        change(tensor, values);
      }
    };
  };
  const StoredType type = GetParam();
  narrow.edit_tensors(each([&](OwnTensor& tensor, std::span<const float> values) {
    tensor.type = type;
    tensor.bytes.resize(values.size() * 2);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t half = half_bits(type, values[i]);
      std::memcpy(&tensor.bytes[2 * i], &half, 2);
    }
  }));
  wide.edit_tensors(each([&](OwnTensor& tensor, std::span<const float> values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float value = from_bits(type, half_bits(type, values[i]));
      std::memcpy(&tensor.bytes[4 * i], &value, 4);
    }
  }));
  EXPECT_EQ(loaded_bytes(narrow.folder.path()), loaded_bytes(wide.folder.path()));
  EXPECT_NE(loaded_bytes(narrow.folder.path()), loaded_bytes(golden_folder("tiny_llama")));
  EXPECT_EQ(loaded_bytes(narrow.folder.path(), DType::bf16), loaded_bytes(wide.folder.path(), DType::bf16));
}

INSTANTIATE_TEST_SUITE_P(Types, StoredHalf, testing::Values(StoredType::bf16, StoredType::f16),
                         [](const auto& i) { return std::string(stored_type_name(i.param)); });

/// The ends of fp16's range: zeros of both signs, subnormals, the largest.
TEST(LoadWeights, ConvertsFp16sSpecialValues) {
  const std::uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x7bff, 0x3555, 0xfbff};
  ModelCopy copy("tiny_llama");
  copy.edit_tensors([&](TensorMap& all) {
    OwnTensor& norm = all["model.norm.weight"];
    norm.type = StoredType::f16;
    norm.bytes.assign(64, std::byte{0});
    std::memcpy(norm.bytes.data(), halves, sizeof(halves));
  });
  const LoadedModel model(copy.folder.path());
  for (std::size_t i = 0; i < std::size(halves); ++i) {
    EXPECT_EQ(model.weights.final_norm.f32()[i], from_bits(StoredType::f16, halves[i])) << i;
    EXPECT_EQ(std::signbit(model.weights.final_norm.f32()[i]), (halves[i] & 0x8000) != 0) << i;
  }
}

TEST(LoadWeights, RoundsToBf16ByNearestEven) {
  // Mantissas that end in exactly half a unit go to the even neighbour, others to the nearest.
  const std::uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0xbf818000};
  const std::uint16_t expected[] = {0x3f80, 0x3f82, 0x3f81, 0x3f80, 0xbf82};
  ModelCopy copy("tiny_llama");
  copy.edit_tensors([&](TensorMap& all) { std::memcpy(all["lm_head.weight"].bytes.data(), bits, sizeof(bits)); });
  const LoadedModel model(copy.folder.path(), DType::bf16);
  ASSERT_EQ(model.weights.head.dtype, DType::bf16);
  for (std::size_t i = 0; i < std::size(bits); ++i)
    EXPECT_EQ(static_cast<const std::uint16_t*>(model.weights.head.data)[i], expected[i]) << i;
  EXPECT_EQ(model.weights.final_norm.dtype, DType::f32) << "norms stay fp32";
}

TEST(LoadWeights, FusesAndTransposes) {
  const LoadedModel llama(golden_folder("tiny_llama"));
  const SafetensorsFile file(golden_folder("tiny_llama") / "model.safetensors");
  const auto at = [](ConstView w, std::int64_t r, std::int64_t c) { return w.f32()[r * w.stride + c]; };
  const ConstView qkv = llama.weights.layers[1].weight[0], up = llama.weights.layers[1].weight[2];
  const std::string layer = "model.layers.1.";
  EXPECT_EQ(at(qkv, 3, 5), file.read<float>(layer + "self_attn.q_proj.weight")[3 * 32 + 5]);
  EXPECT_EQ(at(qkv, 32 + 3, 5), file.read<float>(layer + "self_attn.k_proj.weight")[3 * 32 + 5]);
  EXPECT_EQ(at(qkv, 48 + 15, 31), file.read<float>(layer + "self_attn.v_proj.weight")[15 * 32 + 31]);
  EXPECT_EQ(at(up, 47, 1), file.read<float>(layer + "mlp.gate_proj.weight")[47 * 32 + 1]);
  EXPECT_EQ(at(up, 48 + 47, 1), file.read<float>(layer + "mlp.up_proj.weight")[47 * 32 + 1]);
  const LoadedModel gpt2(golden_folder("tiny_gpt2"));
  const SafetensorsFile conv(golden_folder("tiny_gpt2") / "model.safetensors");
  EXPECT_EQ(at(gpt2.weights.layers[0].weight[0], 70, 9),
            conv.read<float>("transformer.h.0.attn.c_attn.weight")[9 * 96 + 70]);
  EXPECT_EQ(gpt2.weights.layers[0].bias[0].f32()[70], conv.read<float>("transformer.h.0.attn.c_attn.bias")[70]);
  EXPECT_EQ(gpt2.weights.head.data, gpt2.weights.embedding.data) << "tied";
  EXPECT_NE(llama.weights.head.data, llama.weights.embedding.data);
}

struct BadCheckpoint {
  std::string name, line;
  std::function<void(ModelCopy&)> damage;
};

class BadCheckpoints : public testing::TestWithParam<BadCheckpoint> {};

TEST_P(BadCheckpoints, AreRefusedWithTheirLine) {
  ModelCopy copy("tiny_llama");
  GetParam().damage(copy);
  EXPECT_INPUT_ERROR(loaded_bytes(copy.folder.path()), GetParam().line);
}

auto tensors(const std::function<void(TensorMap&)>& edit) {
  return [edit](ModelCopy& copy) { copy.edit_tensors(edit); };
}

INSTANTIATE_TEST_SUITE_P(
    Lines, BadCheckpoints,
    testing::Values(
        BadCheckpoint{
            "missing_tensor",
            "model.safetensors: model.layers.1.mlp.up_proj.weight: expected a tensor of that name, found none",
            tensors([](TensorMap& all) { all.erase("model.layers.1.mlp.up_proj.weight"); })},
        BadCheckpoint{"missing_head", "lm_head.weight: expected a tensor of that name, found none",
                      tensors([](TensorMap& all) { all.erase("lm_head.weight"); })},
        BadCheckpoint{"wrong_shape",
                      "model.safetensors: model.layers.0.mlp.down_proj.weight: expected shape [32, 48], found [48, 32]",
                      tensors([](TensorMap& all) {
                        all["model.layers.0.mlp.down_proj.weight"].shape = {48, 32};
                      })},
        BadCheckpoint{"wrong_vector", "model.norm.weight: expected shape [32], found [1, 32]",
                      tensors([](TensorMap& all) {
                        all["model.norm.weight"].shape = {1, 32};
                      })},
        BadCheckpoint{"wrong_dtype", "model.embed_tokens.weight: expected dtype F32, BF16 or F16, found I32",
                      tensors([](TensorMap& all) { all["model.embed_tokens.weight"].type = StoredType::i32; })},
        BadCheckpoint{"larger_vocabulary", "model.embed_tokens.weight: expected shape [97, 32], found [96, 32]",
                      [](ModelCopy& copy) { copy.edit_config([](nlohmann::json& j) { j["vocab_size"] = 97; }); }},
        BadCheckpoint{"no_weights",
                      "model.safetensors: expected the model's weights, found no such file, and no "
                      "model.safetensors.index.json",
                      [](ModelCopy& copy) { std::filesystem::remove(copy.folder / "model.safetensors"); }},
        BadCheckpoint{"truncated", "model.safetensors",
                      [](ModelCopy& copy) { std::filesystem::resize_file(copy.folder / "model.safetensors", 9000); }},
        BadCheckpoint{"no_tokenizer", "tokenizer.json: expected the model's tokenizer, found no such file",
                      [](ModelCopy& copy) { std::filesystem::remove(copy.folder / "tokenizer.json"); }},
        BadCheckpoint{"missing_shard", "model-00002-of-00002.safetensors",
                      [](ModelCopy& copy) {
                        shard(copy);
                        std::filesystem::remove(copy.folder / "model-00002-of-00002.safetensors");
                      }},
        BadCheckpoint{"tensor_in_two_shards", "expected each tensor in one shard, found a second one",
                      [](ModelCopy& copy) {
                        shard(copy);
                        std::filesystem::copy_file(copy.folder / "model-00001-of-00002.safetensors",
                                                   copy.folder / "model-00002-of-00002.safetensors",
                                                   std::filesystem::copy_options::overwrite_existing);
                      }},
        BadCheckpoint{"index_without_map",
                      "index.json: weight_map: expected an object of tensor names and file names, found none",
                      [](ModelCopy& copy) {
                        shard(copy);
                        write_text(copy.folder / "model.safetensors.index.json", "{}");
                      }},
        BadCheckpoint{"empty_index", "index.json: weight_map: expected at least one tensor, found none",
                      [](ModelCopy& copy) {
                        shard(copy);
                        write_text(copy.folder / "model.safetensors.index.json", R"({"weight_map": {}})");
                      }},
        BadCheckpoint{"index_of_numbers", "index.json: weight_map.lm_head.weight: expected a file name, found number",
                      [](ModelCopy& copy) {
                        shard(copy);
                        write_text(copy.folder / "model.safetensors.index.json",
                                   R"({"weight_map": {"lm_head.weight": 3}})");
                      }}),
    [](const auto& i) { return i.param.name; });

TEST(ModelFolder, MustBeAFolder) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(
      ModelFolder(folder / "nowhere"),
      "nowhere: --model: expected a folder with config.json and model.safetensors, found no such folder");
}

TEST(RandomWeights, FillEveryPartAndFollowTheSeed) {
  const std::unique_ptr<Backend> backend = make_cpu_backend({});
  const ModelConfig config = read_model_config(golden_folder("tiny_gpt2"));
  const auto fill = [&](std::uint64_t seed) {
    std::vector<float> memory(weight_bytes(config, DType::f32) / 4, std::nanf(""));
    random_weights(*backend, config, DType::f32, seed, reinterpret_cast<std::byte*>(memory.data()));
    return memory;
  };
  const std::vector<float> first = fill(1);
  // All sizes of this model are multiples of 16 floats: there is no padding, so nothing may stay NaN.
  for (float x : first) ASSERT_TRUE(std::isfinite(x));
  EXPECT_EQ(first, fill(1));
  EXPECT_NE(first, fill(2));
}

TEST(RandomWeights, LargeMatricesRepeatWhatWasDrawn) {
  const std::unique_ptr<Backend> backend = make_cpu_backend({});
  constexpr std::int64_t rows = 1000, cols = 701, period = 262139;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Tensor matrix(*backend, rows, cols, dtype), widened(*backend, rows, cols);
    fill_random(*backend, matrix.view(), {3, Purpose::bench, 0, 0, 0}, 2, 0.5);
    backend->copy(matrix.view(), widened.view());
    const float* numbers = widened.view().f32();
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      ASSERT_GE(numbers[i], 1.5f);
      ASSERT_LE(numbers[i], 2.5f);
      if (i >= period) {
        ASSERT_EQ(numbers[i], numbers[i - period]);
      }
      sum += numbers[i];
      squares += (numbers[i] - 2) * (numbers[i] - 2);
    }
    EXPECT_NEAR(sum / (rows * cols), 2, 0.005);
    EXPECT_NEAR(squares / (rows * cols), 0.25 / 3, 0.002);
  }
}

}  // namespace
}  // namespace fedpdpo::test
