// ClientStore against a plain array of every client's rows: whatever is brought, announced, changed, read and written
// in whatever order, the numbers are those of clients that never move.
#include <gtest/gtest.h>

#include "client_store_model.hpp"
#include "fedpdpo/train/client_store.hpp"

namespace fedpdpo::test {
namespace {

TEST(ClientStore, HoldsEverybodyWhereThereAreSlots) {
  const auto backend = make_cpu_backend({});
  for (const int slots : {4, 9}) {
    StoreModel model(*backend, 4, slots);
    EXPECT_TRUE(model.store->holds_everybody());
    EXPECT_EQ(model.store->num_slots(), 4);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(model.states[static_cast<std::size_t>(i)].slot, i);
    model.act_at_random(200, 1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(model.states[static_cast<std::size_t>(i)].slot, i) << "was moved";
  }
}

TEST(ClientStore, SwappedClientsKeepTheirNumbers) {
  const auto backend = make_cpu_backend({});
  for (const int slots : {1, 2, 3, 5})
    for (const std::uint64_t seed : {1, 2, 3}) {
      StoreModel model(*backend, 6, slots);
      EXPECT_FALSE(model.store->holds_everybody());
      model.act_at_random(300, seed);
    }
}

/// Clients come in the same order again and again: of six clients with four slots, three are found where they were.
TEST(ClientStore, KeepsWhatComesSoonest) {
  const auto backend = make_cpu_backend({});
  StoreModel model(*backend, 6, 4);
  const auto round = [&] {
    int found = 0;
    for (ClientState& state : model.states) {
      found += state.slot >= 0;
      ClientState* const client = &state;
      model.store->ensure(std::span(&client, 1), Access::train);
    }
    return found;
  };
  round();
  for (int i = 0; i < 5; ++i) EXPECT_GE(round(), 3) << i;
}

TEST(ClientStore, AnnouncedClientsAreThereAndThoseInUseStay) {
  const auto backend = make_cpu_backend({});
  StoreModel model(*backend, 6, 4);
  const std::vector<ClientState*> first = model.list({0, 1}), next = model.list({4, 5}), wide = model.list({2, 3, 5});
  model.store->ensure(first, Access::train);
  model.store->prefetch(next, Access::train);
  for (const int client : {0, 1, 4, 5}) EXPECT_GE(model.states[static_cast<std::size_t>(client)].slot, 0) << client;
  model.store->ensure(next, Access::train);
  model.store->prefetch(wide, Access::train);  // two of the three, one of whom is there
  for (const int client : {4, 5}) EXPECT_GE(model.states[static_cast<std::size_t>(client)].slot, 0) << client;
  model.store->ensure(wide, Access::train);
  for (const int client : {2, 3, 5}) EXPECT_GE(model.states[static_cast<std::size_t>(client)].slot, 0) << client;
  EXPECT_CONTRACT_VIOLATION(model.store->ensure(model.list({0, 1, 2, 3, 4}), Access::train), "more clients than slots");
}

}  // namespace
}  // namespace fedpdpo::test
