// The LoRA aggregation error against its definition with dense products.
#include <gtest/gtest.h>

#include <cmath>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/aggregation_error.hpp"

namespace fedpdpo::test {
namespace {

struct Setting {
  Setting() {
    config = read_model_config(std::filesystem::path(FEDPDPO_SOURCE_DIR) / "tests" / "golden" / "tiny_llama");
    options.lora_rank = 3;
    options.lora_first_layer = 1;
  }
  ModelConfig config;
  AdapterOptions options;
};

std::vector<float> random_values(std::size_t n, std::uint32_t client) {
  RandomStream stream({3, Purpose::test, client, 0, 0});
  std::vector<float> values(n);
  for (float& v : values) v = static_cast<float>(stream.normal());
  return values;
}

/// ||sum p_i B_i A_i - (sum p_i B_i)(sum p_i A_i)||_F over the sites of a layer, product by product.
double dense_error(const ParameterLayout& layout, int layer, std::span<const WeightedLora> clients) {
  double squared = 0;
  for (int block = 0; block < num_blocks; ++block) {
    for (const LoraSite& site : layout.sites(layer, static_cast<Block>(block))) {
      const Parameter& a = layout.parameters()[static_cast<std::size_t>(site.a)];
      const Parameter& b = layout.parameters()[static_cast<std::size_t>(site.b)];
      for (std::int64_t i = 0; i < b.rows; ++i) {
        for (std::int64_t j = 0; j < a.cols; ++j) {
          double of_products = 0, of_averages = 0;
          for (std::int64_t r = 0; r < a.rows; ++r) {
            double mean_a = 0, mean_b = 0;
            for (const WeightedLora& c : clients) {
              const double av = c.values[a.offset + static_cast<std::size_t>(r * a.cols + j)];
              const double bv = c.values[b.offset + static_cast<std::size_t>(i * b.cols + r)];
              of_products += c.share * av * bv;
              mean_a += c.share * av;
              mean_b += c.share * bv;
            }
            of_averages += mean_a * mean_b;
          }
          squared += (of_products - of_averages) * (of_products - of_averages);
        }
      }
    }
  }
  return std::sqrt(squared);
}

std::vector<float> average_of(std::span<const WeightedLora> clients) {
  std::vector<float> average(clients.front().values.size());
  for (std::size_t i = 0; i < average.size(); ++i) {
    double sum = 0;
    for (const WeightedLora& c : clients) sum += c.share * static_cast<double>(c.values[i]);
    average[i] = static_cast<float>(sum);
  }
  return average;
}

double error(const ParameterLayout& layout, int layer, std::span<const WeightedLora> clients) {
  std::vector<std::vector<float>> slices;
  std::vector<WeightedLora> sliced;
  for (const WeightedLora& c : clients) slices.push_back(layer_slice(layout, layer, c.values));
  for (std::size_t i = 0; i < clients.size(); ++i) sliced.push_back({slices[i], clients[i].share});
  const auto backend = make_cpu_backend({});
  return lora_aggregation_error(*backend, layout, layer, sliced, layer_slice(layout, layer, average_of(clients)));
}

TEST(AggregationError, EqualsTheDenseDefinition) {
  const Setting s;
  const std::vector<Group> lora{Group::lora_a, Group::lora_b};
  const ParameterLayout layout(s.config, s.options, lora);
  const std::vector<float> one = random_values(layout.size(), 1), two = random_values(layout.size(), 2),
                           three = random_values(layout.size(), 3);
  const std::vector<WeightedLora> clients{{one, 0.5}, {two, 0.2}, {three, 0.3}};
  EXPECT_EQ(error(layout, 0, clients), 0);  // no LoRA there
  EXPECT_NEAR(error(layout, 1, clients) / dense_error(layout, 1, clients), 1, 1e-6);
  EXPECT_GT(error(layout, 1, clients), 1);
}

TEST(AggregationError, IsZeroWhereOneFactorIsCommon) {
  const Setting s;
  const std::vector<Group> lora{Group::lora_a, Group::lora_b};
  const ParameterLayout layout(s.config, s.options, lora);
  std::vector<float> one = random_values(layout.size(), 1), two = random_values(layout.size(), 2);
  const ParameterRange a = layout.range(Group::lora_a);
  std::copy_n(one.begin() + static_cast<std::ptrdiff_t>(a.begin), a.size(),
              two.begin() + static_cast<std::ptrdiff_t>(a.begin));
  const std::vector<WeightedLora> clients{{one, 0.5}, {two, 0.5}};
  EXPECT_EQ(error(layout, 1, clients), 0);
}

}  // namespace
}  // namespace fedpdpo::test
