// A block's threads, each a fiber: what runs them between barriers, the operations of a warp, and the block's memory.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "emulation.hpp"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

Order order = Order::forward;

enum class State { ready, at_barrier, in_warp, done };

// A stack on which threads run, one after another, until one waits: that one keeps it, the rest go on on another. It is
// entered once by its context; from then on _setjmp and _longjmp switch, which make no system call.
struct Fiber {
  ucontext_t context{};
  jmp_buf place{};
  bool entered = false;
  std::unique_ptr<std::byte[]> stack;
};

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
};

constexpr std::size_t kStackBytes = 128 << 10;

struct Block {
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Fiber* current = nullptr;
  unsigned count = 0, started = 0, running = 0;
  const std::function<void()>* kernel = nullptr;
  std::unique_ptr<unsigned char, decltype(&std::free)> memory{nullptr, std::free};
  std::size_t memory_bytes = 0;
  jmp_buf scheduler{};
} block;

void run_as(unsigned index) {
  block.running = index;
  threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
}

void leave() {
  if (_setjmp(block.current->place) == 0) _longjmp(block.scheduler, 1);
}

void pause(State state) {
  block.threads[block.running].state = state;
  block.threads[block.running].fiber = block.current;
  leave();
}

void enter() {
  while (true) {
    while (block.started < block.count) {
      const unsigned i = block.started++;
      run_as(order == Order::forward ? i : block.count - 1 - i);
      (*block.kernel)();
      block.threads[block.running].state = State::done;
      if (!block.threads[block.running].copies.empty()) fail("a thread ended before its copies");
    }
    block.idle.push_back(block.current);
    leave();
  }
}

void switch_to(Fiber* fiber) {
  block.current = fiber;
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber->entered) _longjmp(fiber->place, 1);
  fiber->entered = true;
  setcontext(&fiber->context);
}

void start_threads() {
  while (block.started < block.count) {
    if (block.idle.empty()) {
      Fiber& fiber = *block.fibers.emplace_back(std::make_unique<Fiber>());
      fiber.stack = std::make_unique<std::byte[]>(kStackBytes);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber.context, enter, 0);
      block.idle.push_back(&fiber);
    }
    Fiber* fiber = block.idle.back();
    block.idle.pop_back();
    switch_to(fiber);
  }
}

void resume(unsigned index) {
  run_as(index);
  block.threads[index].state = State::ready;
  switch_to(block.threads[index].fiber);
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
  operation(brought, last - first);
}

void run_block() {
  block.count = blockDim.x * blockDim.y * blockDim.z;
  block.threads.assign(block.count, {});
  block.started = 0;
  if (block.memory_bytes > 0) std::memset(block.memory.get(), 0xff, block.memory_bytes);
  start_threads();
  while (true) {
    bool progress = false;
    // Warps whose threads have all come to an operation.
    for (unsigned first = 0; first < block.count; first += 32) {
      const unsigned last = std::min(first + 32, block.count);
      while (all_in(State::in_warp, first, last)) {
        progress = true;
        operate(first, last);
        for (unsigned i = 0; i < last - first; ++i) resume(order == Order::forward ? first + i : last - 1 - i);
      }
    }
    if (!progress && all_in(State::at_barrier, 0, block.count)) {
      progress = true;
      for (unsigned i = 0; i < block.count; ++i) resume(order == Order::forward ? i : block.count - 1 - i);
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

void run_grid(dim3 grid, dim3 threads, std::size_t bytes, const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = threads;
  if (bytes > 0) block.memory.reset(static_cast<unsigned char*>(std::aligned_alloc(128, (bytes + 127) / 128 * 128)));
  block.memory_bytes = bytes;
  block.kernel = &thread;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block();
}

void block_barrier() { pause(State::at_barrier); }

unsigned lane() { return block.running % 32; }

void with_warp(WarpOperation operation, void* own) {
  block.threads[block.running].operation = operation;
  block.threads[block.running].brought = own;
  pause(State::in_warp);
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
