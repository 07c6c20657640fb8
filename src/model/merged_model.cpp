// Merging, one shard after another: no more than a shard's changed weights are in memory.
#include "fedpdpo/model/merged_model.hpp"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/json.hpp"
#include "stored_floats.hpp"
#include "stored_sites.hpp"

namespace fedpdpo {
namespace {

using nlohmann::json;

/// What is added to one module's weight, over the module's rows.
struct Change {
  const LinearSite* site;
  std::span<const float> a, b, residual;  // (r, K), (N, r), (N, K) or empty; empty factors: no LoRA
  std::int64_t rank = 0;
};

class Merger {
 public:
  Merger(const ModelFolder& base, const TrainedModel& model)
      : base_(base), config_(base.config()), model_(model), layout_(model.layout(config_)) {
    check(model.values.size() == layout_.size(), "values of another layout");
    prefix_ = backbone_prefix(config_);
    embedding_ = embedding_weight(config_);
    is_bare_ = !base.contains(embedding_);
    head_ = head_weight(config_);
    collect();
  }

  bool changes_head() const { return layout_.head_weight >= 0 || layout_.head_q >= 0; }
  bool unties() const { return changes_head() && config_.tied_head; }
  const std::string& head() const { return head_; }

  /// Names of a stored tensor in the whole model.
  std::string whole_name(const std::string& stored) const {
    return is_bare_ && stored != head_ ? prefix_ + stored : stored;
  }

  /// The shard's tensors, changed ones in memory of `owned`. An untied head joins the embedding's shard.
  std::vector<TensorToWrite> tensors(const SafetensorsFile& shard, std::vector<std::vector<std::byte>>& owned) const {
    std::vector<TensorToWrite> result;
    const auto own = [&](const std::string& name, const StoredTensor& like, std::vector<std::byte> bytes) {
      owned.push_back(std::move(bytes));
      result.push_back({name, like.type, like.shape, owned.back()});
    };
    for (const auto& [stored, tensor] : shard.tensors()) {
      const std::string name = whole_name(stored);
      if (const auto change = changes_.find(name); change != changes_.end()) {
        own(name, tensor, merged(tensor, change->second));
      } else if (changes_head() && name == head_) {
        // A tied model's file may hold the head again; it comes with the embedding.
        if (!config_.tied_head) own(name, tensor, merged_head(tensor));
      } else {
        result.push_back({name, tensor.type, tensor.shape, tensor.bytes});
      }
      if (unties() && name == embedding_) own(head_, tensor, merged_head(tensor));
    }
    return result;
  }

 private:
  void collect() {
    std::size_t at = 0;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int b = 0; b < num_blocks; ++b) {
        const auto block = static_cast<Block>(b);
        for (const LoraSite& place : layout_.sites(static_cast<int>(layer), block)) {
          const int index = layout_.parameters()[static_cast<std::size_t>(place.a)].site;
          const LinearSite* const site = &config_.sites[static_cast<std::size_t>(index)];
          Change change{site, factor(place.a), factor(place.b), {}, layout_.options().lora_rank};
          if (!model_.residual.empty()) {
            const auto size = static_cast<std::size_t>((place.end - place.begin) * config_.block_shape(block)[1]);
            change.residual = std::span(model_.residual).subspan(at, size);
            at += size;
          }
          const std::string name = module_name(config_, layer, *site) + ".weight";
          const std::int64_t rows = place.end - place.begin, cols = config_.block_shape(block)[1];
          require(name, stores_transposed(config_) ? std::vector{cols, rows} : std::vector{rows, cols});
          changes_.emplace(name, change);
        }
      }
    }
    check(at == model_.residual.size(), "a residual of other sites");
    if (changes_head()) require(config_.tied_head ? embedding_ : head_, {config_.vocab_size, config_.hidden_size});
  }

  /// A weight that changes must be there as it is expected: none is passed over.
  void require(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const std::string stored = is_bare_ && name != head_ ? name.substr(prefix_.size()) : name;
    const StoredTensor& tensor = base_.tensor(stored);
    if (tensor.shape != shape || !is_weight_type(tensor.type))
      throw InputError(base_.file_of(stored).string(), stored, "F32, BF16 or F16 of shape " + shape_text(shape),
                       fmt::format("{} {}", stored_type_name(tensor.type), shape_text(tensor.shape)));
  }

  std::span<const float> factor(int index) const {
    return part_of(model_.values, layout_.parameters()[static_cast<std::size_t>(index)]);
  }

  /// W0 (rows, cols) + the rows that `add_row` adds to, `row_of` saying where they belong.
  template <class RowOf, class AddRow>
  std::vector<std::byte> changed(const StoredTensor& tensor, std::int64_t rows, std::int64_t cols, bool transposed,
                                 const RowOf& row_of, const AddRow& add_row) const {
    std::vector<std::byte> bytes(tensor.bytes.begin(), tensor.bytes.end());
    const StoredFloats source{tensor.bytes.data(), tensor.type};
    std::vector<double> row(static_cast<std::size_t>(cols));
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t there = row_of(i);
      const auto place = [&](std::size_t k) {
        return transposed ? k * static_cast<std::size_t>(rows) + static_cast<std::size_t>(there)
                          : static_cast<std::size_t>(there * cols) + k;
      };
      for (std::size_t k = 0; k < row.size(); ++k) row[k] = static_cast<double>(source[place(k)]);
      add_row(i, row);
      for (std::size_t k = 0; k < row.size(); ++k)
        store_float(bytes.data(), tensor.type, place(k), static_cast<float>(row[k]));
    }
    return bytes;
  }

  static void add_product(std::span<const float> b_row, std::span<const float> a, double scale,
                          std::vector<double>& row) {
    for (std::size_t j = 0; j < b_row.size(); ++j) {
      const double factor = scale * static_cast<double>(b_row[j]);
      if (factor == 0) continue;
      const float* a_row = a.data() + j * row.size();
      for (std::size_t k = 0; k < row.size(); ++k) row[k] += factor * static_cast<double>(a_row[k]);
    }
  }

  std::vector<std::byte> merged(const StoredTensor& tensor, const Change& change) const {
    const std::int64_t rows = change.site->end - change.site->begin;
    const std::int64_t cols = config_.block_shape(change.site->block)[1];
    const double scale = layout_.options().lora_alpha / static_cast<double>(change.rank);
    return changed(
        tensor, rows, cols, stores_transposed(config_),
        [&](std::int64_t row) { return config_.checkpoint_row(*change.site, row); },
        [&](std::int64_t i, std::vector<double>& row) {
          if (!change.residual.empty())
            for (std::size_t k = 0; k < row.size(); ++k)
              row[k] += static_cast<double>(change.residual[static_cast<std::size_t>(i * cols) + k]);
          add_product(
              change.b.subspan(static_cast<std::size_t>(i * change.rank), static_cast<std::size_t>(change.rank)),
              change.a, scale, row);
        });
  }

  /// `start` is the pretrained head: H0, or the embedding.
  std::vector<std::byte> merged_head(const StoredTensor& start) const {
    const auto same = [](std::int64_t row) { return row; };
    const std::int64_t d = config_.hidden_size;
    if (layout_.head_weight >= 0)
      return changed(start, config_.vocab_size, d, false, same, [&](std::int64_t i, std::vector<double>& row) {
        const auto own = factor(layout_.head_weight).subspan(static_cast<std::size_t>(i * d), row.size());
        std::copy(own.begin(), own.end(), row.begin());
      });
    const auto rank = static_cast<std::size_t>(layout_.options().head_rank);
    return changed(start, config_.vocab_size, d, false, same, [&](std::int64_t i, std::vector<double>& row) {
      add_product(factor(layout_.head_q).subspan(static_cast<std::size_t>(i) * rank, rank), factor(layout_.head_p), 1,
                  row);
    });
  }

  const ModelFolder& base_;
  const ModelConfig& config_;
  const TrainedModel& model_;
  ParameterLayout layout_;
  std::string prefix_, embedding_, head_;
  bool is_bare_ = false;
  std::map<std::string, Change> changes_;  // by the weight's name in the whole model
};

bool belongs_to_tokenizer(const std::string& name) {
  for (const char* start : {"tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template",
                            "generation_config", "LICENSE", "NOTICE"})
    if (name.starts_with(start)) return true;
  return false;
}

}  // namespace

void write_merged_model(const std::filesystem::path& folder, const ModelFolder& base, const TrainedModel& model) {
  const Merger merger(base, model);
  json weight_map = json::object();
  std::uint64_t total = 0;
  for (const SafetensorsFile& shard : base.files()) {
    std::vector<std::vector<std::byte>> owned;
    const std::vector<TensorToWrite> tensors = merger.tensors(shard, owned);
    const std::string file = shard.path().filename().string();
    for (const TensorToWrite& tensor : tensors) {
      weight_map[tensor.name] = file;
      total += tensor.bytes.size();
    }
    write_safetensors(folder / file, tensors, {{"format", "pt"}});
  }
  if (base.files().size() > 1 || base.files().front().path().filename() != "model.safetensors")
    write_file_atomically(folder / "model.safetensors.index.json",
                          json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n");
  json config = read_json(base.path() / "config.json");
  if (merger.unties()) config["tie_word_embeddings"] = false;
  write_file_atomically(folder / "config.json", config.dump(2) + "\n");
  for (const auto& entry : std::filesystem::directory_iterator(base.path()))
    if (entry.is_regular_file() && belongs_to_tokenizer(entry.path().filename().string()))
      std::filesystem::copy_file(entry.path(), folder / entry.path().filename(),
                                 std::filesystem::copy_options::overwrite_existing);
}

}  // namespace fedpdpo
