// Reading an adapter, tensor by tensor: what is in the file is what is taken.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/model/peft_adapter.hpp"
#include "peft_names.hpp"
#include "peft_settings.hpp"
#include "stored_floats.hpp"
#include "stored_sites.hpp"

namespace fedpdpo {
namespace {

struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<float> values{};
};

/// B A of a module.
struct Factors {
  std::optional<Matrix> a, b;
};

class Reader {
 public:
  Reader(const std::filesystem::path& folder, const ModelFolder& base)
      : base_(base),
        config_(base.config()),
        settings_(read_peft_settings(folder / adapter_config_name, head_module)),
        file_(folder / adapter_weights_name) {}

  TrainedModel read() {
    std::set<std::string> known;
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer)
      for (const LinearSite& site : config_.sites) known.insert(module_name(config_, layer, site));
    for (const auto& [name, tensor] : file_.tensors()) take(name, tensor, known);
    for (const auto& [module, factors] : factors_) require_both(module, factors);
    if (settings_.saves_head && !saved_head_)
      throw InputError(file_.path().string(), peft_prefix + head_module + ".weight", "the saved head", "none");
    TrainedModel model;
    options(model.options);
    fill(model);
    return model;
  }

 private:
  [[noreturn]] void refuse(const std::string& tensor, std::string_view expected, std::string_view found) const {
    throw InputError(file_.path().string(), tensor, expected, found);
  }

  void take(const std::string& name, const StoredTensor& tensor, const std::set<std::string>& known) {
    const auto is_of = [&](std::string_view suffix) { return name.starts_with(peft_prefix) && name.ends_with(suffix); };
    const auto module = [&](std::string_view suffix) {
      return name.substr(peft_prefix.size(), name.size() - peft_prefix.size() - suffix.size());
    };
    for (const std::string_view suffix : {".lora_A.weight", ".lora_B.weight"}) {
      if (!is_of(suffix)) continue;
      const std::string path = module(suffix);
      if (!known.contains(path) && path != head_module)
        refuse(name, fmt::format("LoRA of a linear module of the layers or of {}", head_module), "another module's");
      Factors& factors = factors_[path];
      (suffix == ".lora_A.weight" ? factors.a : factors.b) = matrix(name, tensor);
      return;
    }
    if (settings_.saves_head && name == peft_prefix + head_module + ".weight") {
      saved_head_ = matrix(name, tensor);
      return;
    }
    // What PEFT writes beside an adapter when it is not sure: harmless where it is the base's own.
    for (const std::string_view suffix : {".base_layer.weight", ".weight"}) {
      if (!is_of(suffix)) continue;
      if (!is_the_bases(module(suffix), tensor)) break;
      return;
    }
    refuse(name, "LoRA, or what the base model has too", "something else");
  }

  Matrix matrix(const std::string& name, const StoredTensor& tensor) const {
    if (tensor.shape.size() != 2 || !is_weight_type(tensor.type))
      refuse(name, "a matrix of type F32, BF16 or F16",
             fmt::format("{} {}", stored_type_name(tensor.type), shape_text(tensor.shape)));
    Matrix result{tensor.shape[0], tensor.shape[1]};
    result.values.resize(static_cast<std::size_t>(tensor.num_elements()));
    const StoredFloats source{tensor.bytes.data(), tensor.type};
    for (std::size_t i = 0; i < result.values.size(); ++i) result.values[i] = source[i];
    return result;
  }

  /// Of a module's weight by its path in transformers.
  bool is_the_bases(const std::string& module, const StoredTensor& tensor) const {
    std::string name = module + ".weight";
    if (module == head_module) name = config_.tied_head ? embedding_weight(config_) : head_weight(config_);
    const std::string prefix = backbone_prefix(config_);
    if (!base_.contains(name) && name.starts_with(prefix)) name = name.substr(prefix.size());
    if (!base_.contains(name)) return false;
    const StoredTensor& own = base_.tensor(name);
    if (own.shape != tensor.shape || !is_weight_type(own.type) || !is_weight_type(tensor.type)) return false;
    const StoredFloats a{own.bytes.data(), own.type}, b{tensor.bytes.data(), tensor.type};
    for (std::int64_t i = 0; i < own.num_elements(); ++i)
      if (a[static_cast<std::size_t>(i)] != b[static_cast<std::size_t>(i)]) return false;
    return true;
  }

  void require_both(const std::string& module, const Factors& factors) const {
    const std::string name = peft_prefix + module;
    if (!factors.a) refuse(name + ".lora_A.weight", "a matrix beside lora_B", "none");
    if (!factors.b) refuse(name + ".lora_B.weight", "a matrix beside lora_A", "none");
    const std::int64_t rank = settings_.rank_of(module);
    if (factors.a->rows != rank || factors.b->cols != rank)
      refuse(name, fmt::format("rank {} as adapter_config.json has it", rank),
             fmt::format("lora_A of {} rows and lora_B of {} columns", factors.a->rows, factors.b->cols));
  }

  void options(AdapterOptions& o) const {
    o.lora_rank = 0;
    o.lora_dropout = settings_.dropout;
    int first = static_cast<int>(config_.num_layers);
    std::set<std::string> modules;
    for (int layer = 0; layer < static_cast<int>(config_.num_layers); ++layer) {
      for (const LinearSite& site : config_.sites) {
        const auto found = factors_.find(module_name(config_, layer, site));
        if (found == factors_.end()) continue;
        first = std::min(first, layer);
        modules.insert(site.module);
        o.lora_rank = std::max(o.lora_rank, static_cast<int>(found->second.a->rows));
      }
    }
    if (o.lora_rank > 0) {
      o.lora_first_layer = first;
      o.lora_targets.clear();
      for (const std::string& module : modules) o.lora_targets += (o.lora_targets.empty() ? "" : ",") + module;
      o.lora_alpha =
          o.lora_rank == settings_.rank && !settings_.rank_stabilized ? settings_.alpha : common_scale() * o.lora_rank;
    }
    if (saved_head_) o.head = HeadKind::full;
    const auto head = factors_.find(head_module);
    if (head == factors_.end()) return;
    if (saved_head_) refuse(peft_prefix + head_module, "a saved head or LoRA on it", "both");
    o.head = HeadKind::lowrank;
    o.head_rank = static_cast<int>(head->second.a->rows);
  }

  double common_scale() const {
    return settings_.alpha / (settings_.rank_stabilized ? std::sqrt(settings_.rank) : settings_.rank);
  }

  void fill(TrainedModel& model) const {
    const ParameterLayout layout = model.layout(config_);
    model.values.resize(layout.size());
    const auto put = [&](int index, const Matrix& m, double factor, const auto& row_of) {
      const Parameter& p = layout.parameters()[static_cast<std::size_t>(index)];
      // Ranks below the largest leave rows of A and columns of B at zero.
      const bool fits = p.group == Group::lora_a   ? m.rows <= p.rows && m.cols == p.cols
                        : p.group == Group::lora_b ? m.rows == p.rows && m.cols <= p.cols
                                                   : m.rows == p.rows && m.cols == p.cols;
      if (!fits) refuse(p.name, fmt::format("shape [{}, {}]", p.rows, p.cols), fmt::format("[{}, {}]", m.rows, m.cols));
      const std::span<float> to = part_to_write(model.values, p);
      for (std::int64_t row = 0; row < m.rows; ++row)
        for (std::int64_t col = 0; col < m.cols; ++col) {
          const double value = static_cast<double>(m.values[static_cast<std::size_t>(row_of(row) * m.cols + col)]);
          to[static_cast<std::size_t>(row * p.cols + col)] = static_cast<float>(factor * value);
        }
    };
    const auto same = [](std::int64_t row) { return row; };
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (const LinearSite& site : config_.sites) {
        const std::string module = module_name(config_, layer, site);
        const auto found = factors_.find(module);
        if (found == factors_.end()) continue;
        const double scale = settings_.scale_of(module);
        put(layout.find(module + ".lora_A.weight"), *found->second.a, 1, same);
        put(layout.find(module + ".lora_B.weight"), *found->second.b,
            scale == common_scale() ? 1 : scale / common_scale(),
            [&](std::int64_t row) { return config_.checkpoint_row(site, row); });
      }
    }
    if (saved_head_) put(layout.head_weight, *saved_head_, 1, same);
    if (const auto head = factors_.find(head_module); head != factors_.end()) {
      put(layout.head_p, *head->second.a, 1, same);
      put(layout.head_q, *head->second.b, settings_.scale_of(head_module), same);
    }
  }

  const ModelFolder& base_;
  const ModelConfig& config_;
  PeftSettings settings_;
  SafetensorsFile file_;
  std::map<std::string, Factors> factors_;
  std::optional<Matrix> saved_head_;
};

}  // namespace

TrainedModel read_peft_adapter(const std::filesystem::path& folder, const ModelFolder& base) {
  for (const char* name : {adapter_config_name, adapter_weights_name})
    if (!std::filesystem::exists(folder / name))
      throw InputError((folder / name).string(), "", "a file of a PEFT adapter", "none");
  return Reader(folder, base).read();
}

}  // namespace fedpdpo
