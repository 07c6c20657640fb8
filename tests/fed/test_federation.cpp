// Whole federations of a few clients: what travels between whom under the methods whose rule is about more than the
// average.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "federation_kit.hpp"

namespace fedpdpo::test {
namespace {

using Values = std::vector<float>;

/// 4 and 12 train pairs: x = y_0 / 4 + 3 y_1 / 4 over what is shared; everything else of a client is, at the start of a
/// round, what it was at the end of the one before.
TEST(Federation, SharedPartsAreAveragedAndPrivateOnesStay) {
  for (const char* name : {"fedavg", "fedprox", "fedper", "fedpdpo", "fedsa-lora", "ffa-lora", "ditto", "fedex-lora"}) {
    FederationKit kit(name, {4, 12});
    kit.run();
    const Values expected = weighted({{0.25, kit.result(0, 1)}, {0.75, kit.result(1, 1)}});
    for (int client : {0, 1}) {
      const Values& now = kit.spy->first.at({client, 2}).values;
      expect_all_near(kit.received(client, 2), expected);
      EXPECT_EQ(Values(now.begin(), now.begin() + static_cast<std::ptrdiff_t>(kit.layout->shared_size())),
                kit.received(client, 2));
      // The phases of the personal LoRA come after those that the method sees.
      if (kit.options.adapter.personal_lora == PersonalLora::none) {
        const Values& before = kit.spy->last.at({client, 1}).values;
        EXPECT_TRUE(std::equal(now.begin() + static_cast<std::ptrdiff_t>(kit.layout->shared_size()), now.end(),
                               before.begin() + static_cast<std::ptrdiff_t>(kit.layout->shared_size())))
            << name;
      }
    }
    EXPECT_GT(norm_of_difference(kit.result(0, 1), kit.result(1, 1)), 1e-2)
        << name << ": the clients are all but alike";
  }
}

/// B of FedSA-LoRA starts alike, goes apart, and never comes near the other client's.
TEST(FedSaLora, BNeverLeaks) {
  FederationKit kit("fedsa-lora", {6, 6}, 3);
  kit.run();
  for (int round = 2; round <= 3; ++round) {
    Values b[2], a[2];
    for (int client : {0, 1}) {
      const Values& now = kit.spy->first.at({client, round}).values;
      a[client] = kit.part(now, Group::lora_a);
      b[client] = kit.part(now, Group::lora_b);
      EXPECT_EQ(b[client], kit.part(kit.spy->last.at({client, round - 1}).values, Group::lora_b));
    }
    EXPECT_EQ(a[0], a[1]);
    EXPECT_GT(norm_of_difference(b[0], b[1]), 1e-2);
    EXPECT_EQ(kit.spy->averages[static_cast<std::size_t>(round) - 2].size(), kit.layout->range(Group::lora_a).size())
        << "B reached the server";
  }
}

/// Rounds of B, A, B: what rests keeps every bit, at the clients and at the server.
TEST(RoLora, FirstRoundMovesB) {
  FederationKit kit("rolora", {4, 12}, 3);
  kit.run();
  for (int round = 1; round <= 3; ++round) {
    const Group trained = round % 2 == 1 ? Group::lora_b : Group::lora_a;
    const Group resting = round % 2 == 1 ? Group::lora_a : Group::lora_b;
    const Values& x = kit.received(0, round);
    for (int client : {0, 1}) {
      EXPECT_EQ(kit.part(kit.result(client, round), resting), kit.part(x, resting)) << round;
      EXPECT_GT(norm_of_difference(kit.part(kit.result(client, round), trained), kit.part(x, trained)), 1e-2) << round;
    }
    if (round == 3) break;
    EXPECT_EQ(kit.part(kit.received(0, round + 1), resting), kit.part(x, resting));
    expect_all_near(kit.part(kit.received(0, round + 1), trained),
                    kit.part(weighted({{0.25, kit.result(0, round)}, {0.75, kit.result(1, round)}}), trained));
  }
  const auto half = static_cast<double>(kit.layout->range(Group::lora_b).size());
  EXPECT_EQ(kit.read("/rounds/train/bytes_up")[1], 2 * 4 * half);
}

TEST(FfaLora, AIsTheStartForever) {
  FederationKit kit("ffa-lora", {4, 12}, 3);
  kit.run();
  const Values start = kit.part(kit.spy->first.at({0, 1}).values, Group::lora_a);
  for (int client : {0, 1}) EXPECT_EQ(kit.part(kit.spy->last.at({client, 3}).values, Group::lora_a), start);
}

/// With everybody counted, c = (c_0 + c_1) / 2 in every round; none of them is zero from the second on.
TEST(Scaffold, ControlsSumToTheServers) {
  FederationKit kit("scaffold", {6, 6}, 3);
  kit.run();
  for (int round = 2; round <= 3; ++round) {
    const auto& first = kit.spy->first;
    const Values& c = first.at({0, round}).server_state.at("control");
    const Values &c0 = first.at({0, round}).state.at("control"), &c1 = first.at({1, round}).state.at("control");
    expect_all_near(c, weighted({{0.5, c0}, {0.5, c1}}), 2e-6);  // numbers up to 1 / lr = 100 steps of Adam's size
    EXPECT_GT(norm_of_difference(c0, c1), 1);
    EXPECT_GT(norm_of_difference(c, Values(c.size(), 0)), 1);
  }
  const auto size = static_cast<double>(kit.layout->shared_size());
  EXPECT_EQ(kit.read("/rounds/train/bytes_up")[1], 2 * 4 * 2 * size);
}

/// A fresh A and B = 0 in every round, the same for both clients; what was learned is in the residual. W0 stays.
TEST(MovingBackbone, InAFederation) {
  for (const char* name : {"flora", "fedex-lora"}) {
    FederationKit kit(name, {4, 12}, 3);
    const std::size_t bytes = weight_bytes(kit.model.folder.config(), DType::f32);
    std::vector<std::byte> before(bytes);
    std::memcpy(before.data(), kit.model.memory.get(), bytes);
    kit.run();
    EXPECT_EQ(std::memcmp(before.data(), kit.model.memory.get(), bytes), 0) << name << ": W0 was written";
    ASSERT_EQ(kit.spy->residuals.size(), 3u);
    const Values zero(kit.spy->residuals[0].size(), 0);
    for (const Values& residual : kit.spy->residuals) EXPECT_GT(norm_of_difference(residual, zero), 1e-4) << name;
    EXPECT_NE(kit.spy->residuals[0], kit.spy->residuals[1]);
    for (int round = 2; round <= 3 && name == std::string("flora"); ++round) {
      const Values &x = kit.received(0, round), &last = kit.received(0, round - 1);
      EXPECT_EQ(kit.part(x, Group::lora_b), Values(kit.layout->range(Group::lora_b).size(), 0));
      EXPECT_GT(norm_of_difference(kit.part(x, Group::lora_a), kit.part(last, Group::lora_a)), 1) << "not drawn anew";
      EXPECT_EQ(kit.received(1, round), x);
    }
  }
}

/// FLoRA is exact: one client of rank 4 that trains nothing more finds, in the next round, the very model that it had.
/// The test loss after the exchange is that before it, and not that of the first model.
TEST(MovingBackbone, FloraOfOneClientChangesNothing) {
  for (const char* name : {"flora", "fedex-lora"}) {
    FederationKit kit(name, {8}, 2);
    kit.run();
    const std::vector<double> before = kit.read("/rounds/test/before/loss"),
                              after = kit.read("/rounds/test/after/loss");
    EXPECT_NEAR(after[1], before[1], 1e-5 * before[1]) << name;
    EXPECT_NEAR(after[2], before[2], 1e-5 * before[2]) << name;
    EXPECT_GT(std::abs(after[1] - after[0]), 1e-3) << name << ": training moved nothing";
  }
}

/// Ranks 4 and 2 at clients 0 and 1: the rows of A and columns of B beyond a client's rank stay zero.
TEST(MovingBackbone, FloraWithRanksOfTheirOwn) {
  FederationKit kit("flora", {6, 6}, 2);
  kit.options.lora_ranks = {4, 2};
  kit.run();
  for (int round : {1, 2})
    for (int client : {0, 1})
      for (const Parameter& p : kit.layout->parameters()) {
        const float* values = kit.spy->last.at({client, round}).values.data() + p.offset;
        double norm = 0;
        for (std::int64_t i = 0; i < p.rows; ++i)
          for (std::int64_t j = 0; j < p.cols; ++j)
            if ((p.group == Group::lora_a ? i : j) >= 2) norm += std::abs(values[i * p.cols + j]);
        EXPECT_EQ(norm > 0, client == 0) << p.name;
      }
  const std::vector<double> up = kit.read("/clients/train/bytes_up");
  EXPECT_EQ(up[2], 2 * up[3]);
  EXPECT_EQ(up[2], 4.0 * static_cast<double>(kit.layout->shared_size()));
}

/// When y has become x, the client's model is a v + (1 - a) x, and v and a are what they were.
TEST(Apfl, MixesAnewAfterTheExchange) {
  FederationKit kit("apfl", {4, 12});
  kit.run();
  for (int client : {0, 1}) {
    const Spy::Seen& now = kit.spy->first.at({client, 2});
    const double a = static_cast<double>(now.state.at("apfl.share")[0]);
    EXPECT_NE(a, 0.5) << "the share was not learned";
    for (const auto& [name, common, own] : {std::tuple{"apfl.a", Group::lora_a, Group::personal_a},
                                            std::tuple{"apfl.b", Group::lora_b, Group::personal_b}}) {
      const Values &v = now.state.at(name), x = kit.part(kit.received(client, 2), common);
      EXPECT_GT(norm_of_difference(v, x), 1e-3) << name;
      expect_all_near(kit.part(now.values, own), weighted({{a, v}, {1 - a, x}}));
    }
  }
}

/// Ditto's model is the personal LoRA: the exchange does not touch it. FedDPA's has the shared one in it.
TEST(PersonalLora, IsTheClientsModel) {
  for (const char* name : {"ditto", "feddpa", "apfl"}) {
    FederationKit kit(name, {4, 12});
    kit.run();
    const std::vector<double> before = kit.read("/clients/test/before/loss"),
                              after = kit.read("/clients/test/after/loss");
    for (std::size_t i = 2; i < 6; ++i) {
      EXPECT_EQ(before[i] == after[i], name == std::string("ditto")) << name << ' ' << i;
      EXPECT_NE(after[i], after[i - 2]) << name << ": training moved nothing";
    }
  }
}

/// x + mean of D_i min(1, C / ||D_i||): clients count alike. Without noise nothing bounds the privacy loss.
TEST(Privacy, UpdatesAreClippedAndCountAlike) {
  FederationKit kit("fedavg", {4, 12});
  kit.options.privacy.clip = 0.25;
  kit.run();
  const Values x = kit.received(0, 1);
  std::vector<std::pair<double, Values>> terms{{1, x}};
  for (int client : {0, 1}) {
    const Values y = kit.result(client, 1);
    const double norm = norm_of_difference(y, x), factor = std::min(1.0, 0.25 / norm);
    EXPECT_GT(norm, 0.5) << "the clip does nothing";
    EXPECT_NEAR(kit.read("/clients/train/update_norm")[static_cast<std::size_t>(2 + client)], norm, 1e-5);
    terms.push_back({0.5 * factor, y});
    terms.front().first -= 0.5 * factor;
  }
  expect_all_near(kit.received(0, 2), weighted(terms), 1e-6);
  EXPECT_LE(norm_of_difference(kit.received(0, 2), x), 0.25 * (1 + 1e-6));
  EXPECT_EQ(kit.read("/rounds/privacy/epsilon"), (std::vector<double>{0, INFINITY, INFINITY}));
}

/// Everybody takes part, so a step costs alpha / (2 sigma^2); epsilon after t steps is the least over the orders of
///   t alpha / (2 sigma^2) + log(1 - 1 / alpha) - (log delta + log alpha) / (alpha - 1).
TEST(Privacy, EpsilonIsRecordedByRound) {
  FederationKit kit("fedavg", {4, 4}, 3);
  kit.options.privacy = {.clip = 0.25, .noise_multiplier = 1.5, .delta = 1e-4};
  kit.run();
  const std::vector<double> epsilon = kit.read("/rounds/privacy/epsilon");
  for (int t = 0; t <= 3; ++t) {
    double best = t == 0 ? 0 : INFINITY;
    for (int tenth = 11; tenth < 109 && t > 0; ++tenth) {
      const double a = tenth / 10.0;
      best = std::min(best, t * a / (2 * 1.5 * 1.5) + std::log(1 - 1 / a) - (std::log(1e-4) + std::log(a)) / (a - 1));
    }
    EXPECT_NEAR(epsilon[static_cast<std::size_t>(t)], best, 1e-9) << t;
  }
  EXPECT_EQ(kit.read("/rounds/privacy/delta"), std::vector<double>(4, 1e-4));
  // Noise of 1.5 clips over 2 clients in every coordinate.
  const Values x = kit.received(0, 1), next = kit.received(0, 2);
  const double deviation = norm_of_difference(next, x) / std::sqrt(static_cast<double>(x.size()));
  EXPECT_NEAR(deviation, 1.5 * 0.25 / 2, 0.1 * 1.5 * 0.25 / 2);
}

/// The arrays that a client keeps for its method are as large as the prediction of memory has them.
TEST(Federation, MethodsKeepAsMuchAsTheySay) {
  for (const char* name : {"fedpdpo", "scaffold", "apfl", "ditto", "feddpa", "flora"}) {
    FederationKit kit(name, {4, 12});
    kit.run();
    std::size_t kept = 0;
    for (const auto& [array, values] : kit.spy->first.at({0, 2}).state) kept += values.size();
    std::size_t said = kit.spy->client_state_size(*kit.layout);
    if (const auto own = make_personalization({kit.options.adapter.personal_lora}))
      said += own->client_state_size(*kit.layout);
    EXPECT_EQ(kept, said) << name;
    EXPECT_EQ(kept > 0, name == std::string("scaffold") || name == std::string("apfl")) << name;
  }
}

/// int8: a byte a value and a scale a tensor. Top-k: 8 bytes an entry.
TEST(Compression, InAFederation) {
  for (const Compression compression : {Compression::int8, Compression::topk}) {
    FederationKit kit("fedavg", {4, 12});
    kit.options.compression = {.kind = compression, .topk_share = 0.1};
    kit.run();
    const auto size = static_cast<double>(kit.layout->shared_size());
    const double bytes = compression == Compression::int8
                             ? size + 4 * static_cast<double>(kit.layout->parameters().size())
                             : 8 * std::ceil(0.1 * size);
    EXPECT_EQ(kit.read("/rounds/train/bytes_up")[2], 2 * bytes);
    EXPECT_EQ(kit.read("/rounds/train/bytes_down")[2], 2 * 4 * size);
    const double error = kit.read("/rounds/train/compression_error")[1];
    EXPECT_GT(error, 1e-4);
    EXPECT_LT(error, compression == Compression::int8 ? 0.02 : 1);
    // The first round's average misses the clients' results by what the memories hold.
    const Values exact = weighted({{0.25, kit.result(0, 1)}, {0.75, kit.result(1, 1)}});
    const auto& first = kit.spy->first;
    const Values missing = weighted({{0.25, first.at({0, 2}).state.at("compression.memory")},
                                     {0.75, first.at({1, 2}).state.at("compression.memory")}});
    expect_all_near(weighted({{1, kit.received(0, 2)}, {1, missing}}), exact, 1e-6);
    EXPECT_GT(norm_of_difference(missing, Values(missing.size(), 0)), 1e-4);
  }
}

}  // namespace
}  // namespace fedpdpo::test
