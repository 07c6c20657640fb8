// A ClientStore beside the rows that it should hold, and random use of both.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "fedpdpo/core/random.hpp"
#include "fedpdpo/train/client_store.hpp"
#include "golden_model.hpp"
#include "support/test_support.hpp"

namespace fedpdpo::test {

struct StoreModel {
  StoreModel(Backend& used, int num_clients, int num_slots) : backend(used) {
    AdapterOptions adapter;
    adapter.lora_rank = 2;
    layout = std::make_unique<ParameterLayout>(GoldenModel("tiny_llama").folder.config(), adapter, no_groups());
    states.resize(static_cast<std::size_t>(num_clients));
    std::vector<ClientState*> clients;
    for (std::size_t i = 0; i < states.size(); ++i) {
      states[i].client = static_cast<int>(2 * i + 1);
      clients.push_back(&states[i]);
    }
    for (auto& rows : expected) rows.assign(states.size(), std::vector<float>(layout->size(), 0.0f));
    store = std::make_unique<ClientStore>(backend, *layout, clients, num_slots);
  }

  std::vector<ClientState*> list(std::initializer_list<std::size_t> indices) {
    std::vector<ClientState*> clients;
    for (std::size_t i : indices) clients.push_back(&states[i]);
    return clients;
  }

  /// `count` operations, each checked where it reads, and everybody's rows at the end.
  void act_at_random(int count, std::uint64_t seed) {
    RandomStream random({.seed = seed, .purpose = Purpose::test});
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random.below(n)); };
    for (int i = 0; i < count; ++i) {
      const std::size_t client = below(states.size());
      switch (below(6)) {
        case 0:
        case 1:
          work(some_clients(below), static_cast<Access>(below(3)), 0.001f * static_cast<float>(i + 1));
          break;
        case 2:
          store->prefetch(some_clients(below), static_cast<Access>(below(3)));
          break;
        case 3: {
          const std::size_t begin = below(layout->size()), size = below(layout->size() - begin);
          const std::vector<float> numbers(size, static_cast<float>(i));
          const std::size_t row = below(3);
          store->write(states[client], static_cast<StateRow>(row), numbers, begin);
          std::copy(numbers.begin(), numbers.end(), expected[row][client].begin() + static_cast<std::ptrdiff_t>(begin));
          break;
        }
        case 4: {
          const std::size_t begin = below(layout->size()), end = begin + below(layout->size() - begin);
          store->clear_moments(states[client], {begin, end});
          for (const std::size_t row : {1, 2})
            std::fill(expected[row][client].begin() + static_cast<std::ptrdiff_t>(begin),
                      expected[row][client].begin() + static_cast<std::ptrdiff_t>(end), 0.0f);
          break;
        }
        default:
          check_rows(client);
      }
    }
    for (std::size_t client = 0; client < states.size(); ++client) check_rows(client);
  }

  Backend& backend;
  std::unique_ptr<ParameterLayout> layout;
  std::vector<ClientState> states;
  std::array<std::vector<std::vector<float>>, 3> expected;  // by row, client
  std::unique_ptr<ClientStore> store;

 private:
  static std::span<const Group> no_groups() { return {}; }

  /// At most as many as there are slots, in a random order, none twice.
  template <class Below>
  std::vector<ClientState*> some_clients(Below below) {
    std::vector<ClientState*> all;
    for (ClientState& state : states) all.push_back(&state);
    for (std::size_t i = 0; i < all.size(); ++i) std::swap(all[i], all[i + below(all.size() - i)]);
    all.resize(1 + below(static_cast<std::size_t>(store->num_slots())));
    return all;
  }

  /// The device changes what it may: values by client and time, moments from the values.
  void work(const std::vector<ClientState*>& clients, Access access, float by) {
    store->ensure(clients, access);
    ClientBuffers& buffers = store->buffers();
    Tensor difference(backend, 1, static_cast<std::int64_t>(layout->size()));
    for (const ClientState* client : clients) {
      const auto at = static_cast<std::size_t>(client - states.data());
      backend.fill(difference.view(), by * static_cast<float>(at + 1));
      std::vector<float>&values = expected[0][at], &first = expected[1][at], &second = expected[2][at];
      if (access == Access::read_values) {
        std::vector<float> found(layout->size());
        backend.copy_to_host(found.data(), buffers.values(*client).data, found.size() * sizeof(float));
        ASSERT_EQ(found, values);
        continue;
      }
      backend.axpy(1.0f, difference.view(), buffers.values(*client), Write::accumulate);
      for (float& value : values) value += by * static_cast<float>(at + 1);
      if (access != Access::train) continue;
      backend.axpy(1.0f, buffers.values(*client), buffers.first_moment(*client), Write::overwrite);
      first = values;
      backend.axpy(2.0f, buffers.first_moment(*client), buffers.second_moment(*client), Write::overwrite);
      for (std::size_t i = 0; i < second.size(); ++i) second[i] = 2 * first[i];
    }
  }

  void check_rows(std::size_t client) {
    std::vector<float> found(layout->size());
    for (std::size_t row = 0; row < 3; ++row) {
      store->read(states[client], static_cast<StateRow>(row), found);
      ASSERT_EQ(found, expected[row][client]) << "row " << row << " of client " << client;
    }
  }
};

}  // namespace fedpdpo::test
