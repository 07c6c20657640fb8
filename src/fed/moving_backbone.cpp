// The residual's products, and W = W0 + R on the device.
#include "fedpdpo/fed/moving_backbone.hpp"

#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

/// Calls visit(site, layer, block) for every LoRA site in the residual's order.
template <class Visit>
void for_each_site(const ParameterLayout& layout, std::int64_t num_layers, Visit visit) {
  for (int layer = 0; layer < static_cast<int>(num_layers); ++layer)
    for (int block = 0; block < num_blocks; ++block)
      for (const LoraSite& site : layout.sites(layer, static_cast<Block>(block)))
        visit(site, layer, static_cast<Block>(block));
}

}  // namespace

std::size_t residual_size(const ParameterLayout& layout, const ModelConfig& config) {
  std::size_t size = 0;
  for_each_site(layout, config.num_layers, [&](const LoraSite& site, int, Block block) {
    size += static_cast<std::size_t>((site.end - site.begin) * config.block_shape(block)[1]);
  });
  return size;
}

void add_products(const ParameterLayout& layout, std::span<const WeightedLora> clients, double scale,
                  std::span<float> residual) {
  check(layout.is_shared(Group::lora_a) && layout.is_shared(Group::lora_b), "the products need both factors shared");
  std::size_t at = 0;
  std::vector<double> row;
  const std::vector<Parameter> parameters(layout.parameters().begin(), layout.parameters().end());
  for (const Parameter& a : parameters) {
    if (a.group != Group::lora_a) continue;
    // The B of this A: the parameter with the other factor's name.
    std::string name = a.name;
    name.replace(name.rfind("lora_A"), 6, "lora_B");
    const Parameter& b = parameters[static_cast<std::size_t>(layout.find(name))];
    row.resize(static_cast<std::size_t>(a.cols));
    for (std::int64_t n = 0; n < b.rows; ++n) {
      check(at + row.size() <= residual.size(), "add_products: another residual");
      std::fill(row.begin(), row.end(), 0.0);
      for (const WeightedLora& client : clients) {
        const float* a_values = client.values.data() + a.offset;
        const float* b_row = client.values.data() + b.offset + n * b.cols;
        for (std::int64_t j = 0; j < a.rows; ++j) {
          const double factor = client.share * static_cast<double>(client.weight) * static_cast<double>(b_row[j]);
          if (factor == 0) continue;
          const float* a_row = a_values + j * a.cols;
          for (std::size_t k = 0; k < row.size(); ++k) row[k] += factor * static_cast<double>(a_row[k]);
        }
      }
      for (std::size_t k = 0; k < row.size(); ++k)
        residual[at + k] = static_cast<float>(static_cast<double>(residual[at + k]) + scale * row[k]);
      at += row.size();
    }
  }
  check(at == residual.size(), "add_products: another residual");
}

MovedBackbone::MovedBackbone(Backend& backend, const ModelConfig& config, const Weights& start)
    : backend_(backend), config_(config), start_(start), weights_(start) {
  const std::size_t bytes = weight_bytes(config, DType::f32);
  memory_ = Tensor(backend, 1, static_cast<std::int64_t>((bytes + sizeof(float) - 1) / sizeof(float)));
  const Weights own = view_weights(config, DType::f32, static_cast<std::byte*>(memory_.view().data));
  // Norms, biases, embeddings and the head never change: they stay W0's.
  for (std::size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    weights_.layers[layer].weight = own.layers[layer].weight;
    for (std::size_t block = 0; block < num_blocks; ++block) {
      const ConstView to = own.layers[layer].weight[block];
      backend_.copy(start.layers[layer].weight[block],
                    View{const_cast<void*>(to.data), to.rows, to.cols, to.stride, to.dtype});
    }
  }
}

void MovedBackbone::move(const ParameterLayout& layout, std::span<const float> residual) {
  check(residual.size() == residual_size(layout, config_), "move: another residual");
  std::size_t at = 0;
  Tensor change;
  for_each_site(layout, config_.num_layers, [&](const LoraSite& site, int layer, Block block) {
    const ConstView from = start_.layers[static_cast<std::size_t>(layer)].weight[static_cast<std::size_t>(block)];
    const ConstView whole = weights_.layers[static_cast<std::size_t>(layer)].weight[static_cast<std::size_t>(block)];
    const std::int64_t rows = site.end - site.begin;
    const View to{const_cast<float*>(whole.f32()) + site.begin * whole.cols, rows, whole.cols, whole.cols, DType::f32};
    const auto size = static_cast<std::size_t>(to.size());
    if (!change || change.rows() != rows || change.cols() != to.cols) change = Tensor(backend_, rows, to.cols);
    backend_.copy_to_device(change.view().data, residual.data() + at, size * sizeof(float));
    backend_.copy(from.row_range(site.begin, site.end), to);
    backend_.axpy(1.0f, change.view(), to, Write::accumulate);
    at += size;
  });
}

}  // namespace fedpdpo
