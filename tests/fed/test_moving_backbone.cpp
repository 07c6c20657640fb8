// FedEx-LoRA and FLoRA by hand, at a map of 2 x 2, and the backbone that they move.
#include <gtest/gtest.h>

#include <cstring>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/fed/hosted_clients.hpp"
#include "fedpdpo/fed/moving_backbone.hpp"
#include "fedpdpo/fed/registry.hpp"
#include "fedpdpo/model/decoder.hpp"
#include "support/test_support.hpp"
#include "tiny_layout.hpp"
#include "train/golden_model.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;
const std::vector<Group> lora{Group::lora_a, Group::lora_b};
const std::map<std::string, Values> no_means;

/// One round of a server: its rule, then its backbone.
void serve(const std::string& method, const ParameterLayout& layout, ServerState& server,
           std::span<const WeightedLora> clients, int round = 1, std::uint64_t seed = 3) {
  Values average(layout.shared_size(), 0);
  for (const WeightedLora& client : clients)
    for (std::size_t i = 0; i < average.size(); ++i) average[i] += static_cast<float>(client.share) * client.values[i];
  const auto rule = find_method(method)->make({});
  const auto n = static_cast<int>(clients.size());
  const ServerRound facts{layout, round, seed, n, n, average, no_means};
  rule->update_server(server, facts);
  server.residual.resize(residual_size(layout, tiny_model()));
  rule->move_backbone(server, facts, clients);
}

/// Rank 1, alpha 2, so s = 2; buffers are A (2), B (2), shares 1/4 and 3/4.
///   B_1 A_1 = [3 6; 4 8], B_2 A_2 = [-1 1; 0 0], their mean [0 2.25; 1 2]
///   A = (-0.5, 1.25), B = (1.5, 1), B A = [-0.75 1.875; -0.5 1.25]
TEST(FedExLora, TheResidualIsWhatAveragingLeavesOut) {
  const ParameterLayout layout(tiny_model(), tiny_adapter(1, 2), lora);
  const Values one{1, 2, 3, 4}, two{-1, 1, 1, 0};
  const std::vector<WeightedLora> clients{{one, 0.25}, {two, 0.75}};
  ServerState server{Values(4, 0), {}, {}};
  serve("fedex-lora", layout, server, clients);
  EXPECT_EQ(server.values, (Values{-0.5f, 1.25f, 1.5f, 1}));
  EXPECT_EQ(server.residual, (Values{1.5f, 0.75f, 3, 1.5f}));
  // With it the averaged model is the average of the clients' models: s B A + R = s mean(B_k A_k).
  const Values product{-0.75f, 1.875f, -0.5f, 1.25f}, mean{0, 2.25f, 1, 2};
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(2 * product[i] + server.residual[i], 2 * mean[i]);
  // It adds up from round to round.
  serve("fedex-lora", layout, server, clients, 2);
  EXPECT_EQ(server.residual, (Values{3, 1.5f, 6, 3}));
}

TEST(FedExLora, ClientsThatAgreeLeaveNothingOut) {
  const ParameterLayout layout(tiny_model(), tiny_adapter(1, 2), lora);
  const Values one{1, 2, 3, 4};
  ServerState server{Values(4, 0), {}, {}};
  serve("fedex-lora", layout, server, std::vector<WeightedLora>{{one, 0.25}, {one, 0.75}});
  EXPECT_EQ(server.residual, Values(4, 0));
}

/// Rank 2, alpha 4, so s = 2; client 1 has rank 1, so s_1 = 4, and its weight over the layout's scale is 2.
///   s_1 B_1 A_1 = 4 [3 6; 4 8], s_2 B_2 A_2 = 2 [1 -1; 0 2]
TEST(FLoRa, StacksProductsOfDifferentRanks) {
  const ParameterLayout layout(tiny_model(), tiny_adapter(2, 4), lora);
  Values one{1, 2, 0, 0, 3, 0, 4, 0};
  const Values two{1, 0, 0, 1, 1, -1, 0, 2};
  const std::vector<WeightedLora> clients{{one, 0.25, 2}, {two, 0.75, 1}};
  ServerState server{Values(8, 0), {}, {}};
  serve("flora", layout, server, clients);
  EXPECT_EQ(server.residual, (Values{3 + 1.5f, 6 - 1.5f, 4, 8 + 3}));
  serve("flora", layout, server, std::vector<WeightedLora>{{two, 1, 1}}, 2);
  EXPECT_EQ(server.residual, (Values{4.5f + 2, 4.5f - 2, 4, 11 + 4}));
}

/// A new A every round, the same for the same seed, within Kaiming's bound; B = 0, so that the model does not jump.
TEST(FLoRa, StartsAfreshEveryRound) {
  const ParameterLayout layout(tiny_model(), tiny_adapter(2, 4), lora);
  const Values two{1, 0, 0, 1, 1, -1, 0, 2};
  const std::vector<WeightedLora> clients{{two, 1}};
  const auto start = [&](int round, std::uint64_t seed) {
    ServerState server{Values(8, 9), {}, {}};
    serve("flora", layout, server, clients, round, seed);
    EXPECT_EQ(Values(server.values.begin() + 4, server.values.end()), Values(4, 0));
    for (std::size_t i = 0; i < 4; ++i) EXPECT_LE(std::abs(server.values[i]), 1 / std::sqrt(2.0f));
    return server.values;
  };
  const Values first = start(1, 3);
  EXPECT_EQ(start(1, 3), first);
  EXPECT_NE(start(2, 3), first);
  EXPECT_NE(start(1, 4), first);
  EXPECT_NE(first[0], first[1]);
}

TEST(HostedRank, TruncatesWhatTheServerSendsAndScales) {
  const auto backend = make_cpu_backend({});
  const ParameterLayout layout(tiny_model(), tiny_adapter(2, 4), lora);
  Partition partition;
  partition.clients.resize(2);
  HostedClients clients(*backend, layout, partition, {}, {0, 1}, RoundTable({}));
  clients.set_rank(*clients.find(0), 1);
  EXPECT_EQ(clients.find(0)->state.lora_weight, 2) << "alpha / 1 over alpha / 2";
  EXPECT_EQ(clients.find(1)->state.lora_weight, 1);
  const Values server{1, 2, 3, 4, 5, 6, 7, 8};
  for (const int resident : {2, 1}) {
    clients.make_room(resident);
    for (HostedClient& client : clients.all()) clients.set_shared(client, server);
    Values found(8);
    clients.get_shared(*clients.find(0), found);
    EXPECT_EQ(found, (Values{1, 2, 0, 0, 5, 0, 7, 0})) << "the second row of A and column of B";
    clients.get_shared(*clients.find(1), found);
    EXPECT_EQ(found, server);
  }
  EXPECT_CONTRACT_VIOLATION(clients.set_rank(*clients.find(1), 3), "at most the layout's");
}

/// FedEx-LoRA's residual comes down as the participants' factors or whole, FLoRA's factors stacked or whole: the
/// smaller.
TEST(Traffic, OfAMovedBackbone) {
  const ParameterLayout layout(tiny_model(), tiny_adapter(2, 4), lora);
  const auto traffic = [&](const char* method, int participants, double rank_share, std::size_t residual) {
    const Traffic t = find_method(method)->make({})->traffic({layout, 1, participants, rank_share, 1.5, residual});
    return std::pair(t.up, t.down);
  };
  using Pair = std::pair<std::size_t, std::size_t>;
  EXPECT_EQ(traffic("fedex-lora", 2, 1, 1000), Pair(8, 8 + 16));
  EXPECT_EQ(traffic("fedex-lora", 200, 1, 1000), Pair(8, 8 + 1000));
  EXPECT_EQ(traffic("flora", 2, 1, 1000), Pair(8, 12));
  EXPECT_EQ(traffic("flora", 2, 0.5, 10), Pair(4, 10));
}

AdapterOptions wide_adapter() {
  AdapterOptions options;
  options.lora_rank = 3;
  options.lora_alpha = 5;
  return options;
}

Values random_values(std::size_t n, double spread, std::uint64_t seed) {
  RandomStream stream({.seed = seed, .purpose = Purpose::test});
  Values values(n);
  for (float& v : values) v = static_cast<float>(spread * stream.normal());
  return values;
}

/// Hidden states of one sequence.
Values hidden_states(Decoder& decoder, const Values& lora_values) {
  const std::vector<std::int32_t> tokens{5, 17, 90, 3, 3, 41}, positions{0, 1, 2, 3, 4, 5}, groups{0, 1};
  const std::vector<Segment> segments{{0, 6, 0, 0}};
  const std::vector<MemberRows> members{{0, 6, 0}};
  const BatchView batch{tokens, positions, {segments, groups}, members};
  const ConstView h = decoder.forward(batch, {lora_values.data(), 0}, Pass::evaluate);
  return {h.f32(), h.f32() + h.size()};
}

class Backbones : public testing::TestWithParam<std::string> {};

/// W0 + s B A with LoRA at zero is the model with LoRA on W0: every site's product lands in its own rows. The reference
/// model stays to the byte.
TEST_P(Backbones, MovedByAProductIsTheModelWithLora) {
  GoldenModel model(GetParam());
  const ModelConfig& config = model.folder.config();
  const std::size_t bytes = weight_bytes(config, DType::f32);
  std::vector<std::byte> before(bytes);
  std::memcpy(before.data(), model.memory.get(), bytes);
  const ParameterLayout layout(config, wide_adapter(), lora);
  const Values with_lora = random_values(layout.size(), 0.2, 1), without(layout.size(), 0);
  Values residual(residual_size(layout, config), 0);
  const WeightedLora client{with_lora, 1};
  add_products(layout, std::span(&client, 1), layout.lora_scale(), residual);

  Decoder decoder(*model.backend, config, model.weights, layout);
  const Values expected = hidden_states(decoder, with_lora), reference = hidden_states(decoder, without);
  MovedBackbone moved(*model.backend, config, model.weights);
  decoder.use_weights(moved.weights());
  EXPECT_EQ(hidden_states(decoder, without), reference) << "a copy that has not moved";
  for (int again = 0; again < 2; ++again) {  // anew from W0 each time, not on top
    moved.move(layout, residual);
    EXPECT_LT(relative_error(hidden_states(decoder, without), expected), 1e-5);
  }
  EXPECT_GT(relative_error(expected, reference), 0.1) << "LoRA changes next to nothing";
  moved.move(layout, Values(residual.size(), 0));
  EXPECT_EQ(hidden_states(decoder, without), reference);
  decoder.use_weights(model.weights);
  EXPECT_EQ(hidden_states(decoder, without), reference);
  EXPECT_EQ(std::memcmp(before.data(), model.memory.get(), bytes), 0) << "W0 was written";
}

INSTANTIATE_TEST_SUITE_P(Models, Backbones, testing::ValuesIn(golden_models), [](const auto& i) { return i.param; });

/// Layers below the first with LoRA stay, and so do matrices that are no target.
TEST(MovedBackbone, OnlySitesMove) {
  GoldenModel model("tiny_llama");
  const ModelConfig& config = model.folder.config();
  AdapterOptions options = wide_adapter();
  options.lora_first_layer = 1;
  options.lora_targets = "k_proj,up_proj";
  const ParameterLayout layout(config, options, lora);
  const std::size_t size = residual_size(layout, config);
  EXPECT_EQ(size, 16u * 32 + 48u * 32);
  MovedBackbone moved(*model.backend, config, model.weights);
  moved.move(layout, Values(size, 1));
  for (std::size_t layer = 0; layer < 2; ++layer)
    for (std::size_t b = 0; b < num_blocks; ++b) {
      const ConstView from = model.weights.layers[layer].weight[b], to = moved.weights().layers[layer].weight[b];
      for (std::int64_t i = 0; i < from.rows; ++i) {
        const auto block = static_cast<Block>(b);
        const auto& sites = layout.sites(static_cast<int>(layer), block);
        const bool moves = !sites.empty() && i >= sites[0].begin && i < sites[0].end;
        for (std::int64_t j = 0; j < from.cols; ++j) {
          const float w = from.f32()[i * from.stride + j];
          ASSERT_EQ(to.f32()[i * to.stride + j], moves ? w + 1 : w) << layer << ' ' << b << ' ' << i << ' ' << j;
        }
      }
    }
  EXPECT_CONTRACT_VIOLATION(moved.move(layout, Values(size - 1)), "another residual");
}

/// bf16 keeps 8 bits: 1 + 2^-12 would be lost in it, and the moved copy is in fp32.
TEST(MovedBackbone, IsFp32AlsoOverBf16) {
  GoldenModel model("tiny_llama", DType::bf16);
  const ModelConfig& config = model.folder.config();
  AdapterOptions options = wide_adapter();
  options.lora_targets = "o_proj";
  const ParameterLayout layout(config, options, lora);
  MovedBackbone moved(*model.backend, config, model.weights);
  moved.move(layout, Values(residual_size(layout, config), 0x1p-12f));
  const ConstView from = model.weights.layers[1].weight[static_cast<std::size_t>(Block::output)];
  const ConstView to = moved.weights().layers[1].weight[static_cast<std::size_t>(Block::output)];
  ASSERT_EQ(from.dtype, DType::bf16);
  ASSERT_EQ(to.dtype, DType::f32);
  Values exact(static_cast<std::size_t>(from.size()));
  model.backend->copy(from, view_of(exact.data(), from.rows, from.cols));
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_EQ(to.f32()[i], exact[i] + 0x1p-12f) << i;
}

}  // namespace
}  // namespace fedpdpo::test
