// A block's threads, each a fiber: what runs them between barriers, the operations of a warp, and the block's memory.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "emulation.hpp"
#include "fibers.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

Order order = Order::forward;

enum class State { ready, at_barrier, in_warp, done };

struct Copy {
  void* to;
  const void* from;  // null: zeros
  std::size_t bytes;
};

using WarpOperation = void (*)(void* const* lanes, unsigned count);

struct Thread {
  State state = State::done;
  WarpOperation operation = nullptr;
  void* brought = nullptr;
  std::vector<Copy> copies;
  Fiber* fiber = nullptr;
  unsigned barriers = 0, warp_barriers = 0;  // that it has come to
};

// Two by turns: who comes to the next barrier is not yet before those who still leave the last one.
using Gates = Gate[2];

struct Block {
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Fiber* current = nullptr;
  unsigned count = 0, started = 0, running = 0;
  const std::function<void()>* kernel = nullptr;
  std::unique_ptr<unsigned char, decltype(&std::free)> memory{nullptr, std::free};
  std::size_t memory_bytes = 0;
  int any = 0;
  Gates barrier, warp_barriers[32];
  Gate grid_begun, grid_ended, shared_statics;
} block;

void run_as(unsigned index) {
  block.running = index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
}

void pause(State state) {
  block.threads[block.running].state = state;
  block.threads[block.running].fiber = block.current;
  leave(*block.current);
}

// Threads run on a fiber one after another, until one waits: that one keeps it, the rest go on on another.
void enter() {
  while (true) {
    while (block.started < block.count) {
      const unsigned i = block.started++;
      run_as(order == Order::forward ? i : block.count - 1 - i);
      acquire(block.grid_begun);
      acquire(block.shared_statics);
      (*block.kernel)();
      Thread& own = block.threads[block.running];
      // Blocks have no order among them; but what is shared in each and is no dynamic memory is one place here.
      if (own.barriers > 0 && block.memory_bytes == 0) release(block.shared_statics);
      release(block.grid_ended);
      own.state = State::done;
      if (!own.copies.empty()) fail("a thread ended before its copies");
      if (fibers_are_threads) break;
    }
    if (!fibers_are_threads) block.idle.push_back(block.current);
    leave(*block.current);
  }
}

void go_on(Fiber* fiber) {
  block.current = fiber;
  switch_to(*fiber);
}

void start_threads() {
  if (fibers_are_threads) {
    block.idle.clear();
    for (auto fiber = block.fibers.rbegin(); fiber != block.fibers.rend(); ++fiber) block.idle.push_back(fiber->get());
  }
  while (block.started < block.count) {
    if (block.idle.empty()) block.idle.push_back(block.fibers.emplace_back(make_fiber(enter)).get());
    Fiber* fiber = block.idle.back();
    block.idle.pop_back();
    go_on(fiber);
  }
}

void resume(unsigned index) {
  run_as(index);
  block.threads[index].state = State::ready;
  go_on(block.threads[index].fiber);
}

/// True if all threads of [first, last) are in `state`; fails if some are, but others have ended.
bool all_in(State state, unsigned first, unsigned last) {
  unsigned waiting = 0, done = 0;
  for (unsigned i = first; i < last; ++i) {
    waiting += block.threads[i].state == state;
    done += block.threads[i].state == State::done;
  }
  if (waiting > 0 && waiting + done == last - first && done > 0) fail("threads wait for threads that have ended");
  return waiting == last - first;
}

void operate(unsigned first, unsigned last) {
  const WarpOperation operation = block.threads[first].operation;
  void* brought[32];
  for (unsigned i = first; i < last; ++i) {
    if (block.threads[i].operation != operation) fail("lanes of a warp at different operations");
    brought[i - first] = block.threads[i].brought;
  }
  begin_unseen();
  operation(brought, last - first);
  end_unseen();
}

/// Of NaN. To the sanitizer another piece for every block.
void fresh_memory() {
  if (block.memory_bytes == 0) return;
  const std::size_t size = (block.memory_bytes + 127) / 128 * 128;
  begin_unseen();
  if (fibers_are_threads || !block.memory) {
    block.memory.reset();
    block.memory.reset(static_cast<unsigned char*>(std::aligned_alloc(128, size)));
  }
  std::memset(block.memory.get(), 0xff, size);
  end_unseen();
}

void run_block() {
  block.count = blockDim.x * blockDim.y * blockDim.z;
  block.threads.assign(block.count, {});
  block.started = 0;
  fresh_memory();
  start_threads();
  const bool forward = order == Order::forward;
  while (true) {
    bool progress = false;
    // Warps whose threads have all come to an operation: forward each as far as it goes, backward by turns.
    const unsigned warps = (block.count + 31) / 32;
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned first = 32 * (forward ? w : warps - 1 - w), last = std::min(first + 32, block.count);
      while (all_in(State::in_warp, first, last)) {
        progress = true;
        operate(first, last);
        for (unsigned i = 0; i < last - first; ++i) resume(forward ? first + i : last - 1 - i);
        if (!forward) break;
      }
    }
    if (!progress && all_in(State::at_barrier, 0, block.count)) {
      progress = true;
      for (unsigned i = 0; i < block.count; ++i) resume(forward ? i : block.count - 1 - i);
    }
    if (progress) continue;
    for (unsigned i = 0; i < block.count; ++i)
      if (block.threads[i].state != State::done) fail("threads wait at different places");
    return;
  }
}

}  // namespace

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s (block %u %u %u, thread %u %u %u)\n", what, blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::abort();
}

void set_order(Order wanted) { order = wanted; }
bool sees_races() { return fibers_are_threads; }

void run_grid(dim3 grid, dim3 threads, std::size_t bytes, const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = threads;
  block.memory.reset();
  block.memory_bytes = bytes;
  block.kernel = &thread;
  release(block.grid_begun);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
  acquire(block.grid_ended);
}

void block_barrier() {
  Gate& gate = block.barrier[block.threads[block.running].barriers++ % 2];
  release(gate);
  pause(State::at_barrier);
  acquire(gate);
}

int block_barrier_or(int own) {
  block.any = 0;
  block_barrier();
  if (own != 0) block.any = 1;
  block_barrier();
  const int any = block.any;
  block_barrier();
  return any;
}

unsigned lane() { return block.running % 32; }

void with_warp(WarpOperation operation, void* own) {
  block.threads[block.running].operation = operation;
  block.threads[block.running].brought = own;
  pause(State::in_warp);
}

void warp_barrier() {
  Gate& gate = block.warp_barriers[block.running / 32][block.threads[block.running].warp_barriers++ % 2];
  release(gate);
  with_warp([](void* const*, unsigned) {}, nullptr);
  acquire(gate);
}

unsigned char* block_memory() { return block.memory.get(); }

void copy_later(void* to, const void* from, std::size_t bytes, bool valid) {
  require_in_block_memory(to, bytes);
  require(reinterpret_cast<std::uintptr_t>(from) % bytes == 0, "an asynchronous copy from an unaligned address");
  std::memset(to, 0xff, bytes);
  block.threads[block.running].copies.push_back({to, valid ? from : nullptr, bytes});
}

void finish_copies() {
  for (const Copy& copy : block.threads[block.running].copies) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  block.threads[block.running].copies.clear();
}

void require(bool condition, const char* what) {
  if (!condition) fail(what);
}

void require_in_block_memory(const void* from, std::size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(from);
  const unsigned char* memory = block.memory.get();
  require(memory != nullptr && at >= memory && at + bytes <= memory + block.memory_bytes, "not in the block's memory");
  require(reinterpret_cast<std::uintptr_t>(from) % bytes == 0, "unaligned in the block's memory");
}

}  // namespace emulation
