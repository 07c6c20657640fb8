// Adapter folders with damaged files: each must be refused with an InputError that names its file, or give a model
// whose values fit its layout; never a crash, another exception or, under the sanitizers, a report.
#include <gtest/gtest.h>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "fedpdpo/model/private_modules.hpp"
#include "model_kit.hpp"
#include "support/mutations.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;
using test::mutated;
using test::read_text;
using test::write_text;

class AdapterMutations : public testing::Test {
 protected:
  void SetUp() override {
    TrainedModel model;
    AdapterOptions& o = model.options;
    o.lora_rank = 2;
    o.lora_targets = "q_proj,down_proj";
    o.head = HeadKind::lowrank;
    o.head_rank = 3;
    o.bottleneck = 4;
    o.reward_head = true;
    RandomStream random({.seed = 5, .purpose = Purpose::test});
    model.values.resize(model.layout(base_.config()).size());
    for (float& value : model.values) value = static_cast<float>(random.normal());
    write_peft_adapter(folder(), base_.config(), model, "a base");
    write_private_modules(folder(), base_.config(), model, json{{"client", 1}});
    whole_ = model;
  }

  const std::filesystem::path& folder() const { return folder_.path(); }
  TrainedModel read() const {
    TrainedModel model = read_peft_adapter(folder(), base_);
    add_private_modules(folder(), base_.config(), model);
    return model;
  }
  /// Reads the folder with these bytes in place of a file's.
  void try_file(const std::string& name, const std::string& bytes) {
    write_text(folder() / name, bytes);
    try {
      const TrainedModel model = read();
      ++accepted_;
      ASSERT_EQ(model.values.size(), model.layout(base_.config()).size());
    } catch (const InputError& error) {
      ++refused_;
      ASSERT_TRUE(test::is_one_line(error.what())) << error.what();
      ASSERT_NE(std::string_view(error.what()).find(folder().string()), std::string_view::npos) << error.what();
    }
  }
  void try_changes(const std::string& name, std::size_t reach, int count) {
    const std::string bytes = read_text(folder() / name);
    RandomStream random({.seed = 6, .purpose = Purpose::test});
    for (int i = 0; i < count; ++i)
      ASSERT_NO_THROW(try_file(name, mutated(bytes, random, reach))) << name << ", mutation " << i;
    EXPECT_GT(refused_, count / 4);
    EXPECT_GT(accepted_, 0);
    write_text(folder() / name, bytes);
    EXPECT_EQ(read().values, whole_.values);
  }
  std::size_t header_end(const std::string& name) const {
    const SafetensorsFile file(folder() / name);
    std::size_t data = 0;
    for (const auto& [tensor, stored] : file.tensors()) data += stored.bytes.size();
    return std::filesystem::file_size(folder() / name) - data;
  }
  /// The error's line of a configuration with this field, empty where it is accepted.
  std::string refusal(const char* file, const char* field, const json& value) {
    const std::string bytes = read_text(folder() / file);
    json config = json::parse(bytes);
    config[field] = value;
    write_text(folder() / file, config.dump());
    std::string line;
    try {
      static_cast<void>(read());
    } catch (const InputError& error) {
      line = error.what();
    }
    write_text(folder() / file, bytes);
    return line;
  }

  test::TemporaryFolder folder_;
  ModelFolder base_{test::golden_folder("tiny_llama")};
  TrainedModel whole_;
  int accepted_ = 0, refused_ = 0;
};

TEST_F(AdapterMutations, TheWholeFolderIsFine) {
  const TrainedModel model = read();
  EXPECT_EQ(model.values, whole_.values);
  EXPECT_EQ(model.options.lora_rank, 2);
  EXPECT_EQ(model.options.lora_targets, "mlp.down_proj,self_attn.q_proj") << "and no other module has LoRA";
  EXPECT_EQ(model.options.head_rank, 3);
  EXPECT_EQ(model.options.bottleneck, 4);
}

TEST_F(AdapterMutations, OfTheAdaptersSettings) { try_changes(adapter_config_name, SIZE_MAX, 3000); }
TEST_F(AdapterMutations, OfTheAdaptersWeights) {
  try_changes(adapter_weights_name, header_end(adapter_weights_name), 3000);
}
TEST_F(AdapterMutations, OfTheModulesSettings) { try_changes(modules_config_name, SIZE_MAX, 3000); }
TEST_F(AdapterMutations, OfTheModulesWeights) {
  try_changes(modules_weights_name, header_end(modules_weights_name), 3000);
}

TEST_F(AdapterMutations, SettingsOfNoUse) {
  const auto adapter = [&](const char* field, const json& value) { return refusal(adapter_config_name, field, value); };
  for (const json& rank : {json(0), json(-1), json(2.5), json(1e300), json("2"), json(5000)})
    EXPECT_NE(adapter("rank_pattern", {{"q_proj", rank}}).find("rank_pattern.q_proj"), std::string::npos) << rank;
  for (const json& alpha : {json(0), json(-1), json("2")})
    EXPECT_NE(adapter("alpha_pattern", {{"q_proj", alpha}}).find("alpha_pattern.q_proj"), std::string::npos) << alpha;
  for (const char* pattern : {"(", "q_proj)", "[", "*"})
    EXPECT_NE(adapter("alpha_pattern", {{pattern, 2}}).find("regular expression"), std::string::npos) << pattern;
  EXPECT_NE(adapter("rank_pattern", json::array()).find("rank_pattern: expected an object"), std::string::npos);
  EXPECT_NE(adapter("modules_to_save", {{"lm_head", 1}}).find("modules_to_save"), std::string::npos);
  EXPECT_NE(adapter("init_lora_weights", "pissa").find("init_lora_weights"), std::string::npos);
  EXPECT_EQ(adapter("layers_pattern", "layers"), "") << "says where the adapter was put, not what it is";

  const auto modules = [&](const char* field, const json& value) { return refusal(modules_config_name, field, value); };
  // The file has width 4: the large one is refused before memory is asked for.
  for (const json& width : {json(0), json(1 << 20), json(1 << 21), json(3), json("4"), json(nullptr)})
    EXPECT_NE(modules("bottleneck", {{"kind", "residual"}, {"width", width}, {"activation", "gelu"}}), "") << width;
  for (const json& bottleneck : {json(4), json("residual"), json::array({1}), json::object()})
    EXPECT_NE(modules("bottleneck", bottleneck), "") << bottleneck;
  EXPECT_NE(modules("reward_head", {{"pool", "first"}}).find("last or mean"), std::string::npos);
}

}  // namespace
}  // namespace fedpdpo
