// Fibers, on which a block's threads run, and what the thread sanitizer is told of them: fibers.cpp knows no sanitizer,
// fibers_races.cpp (CMake's FEDPDPO_RACES) makes every fiber a thread of its own to it, ordered by barriers alone.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace emulation {

/// A stack and the place where what runs on it waits.
struct Fiber {
  ucontext_t context{};
  jmp_buf place{};
  bool entered = false;
  std::unique_ptr<std::byte[]> stack;
  void* identity = nullptr;  ///< to the sanitizer
};

/// True where a thread of the block needs a fiber that no other thread of the block has had.
extern const bool fibers_are_threads;

/// A fiber that begins with entry(), which never returns.
std::unique_ptr<Fiber> make_fiber(void (*entry)());
/// The same for builds of fibers: its stack and its context.
inline std::unique_ptr<Fiber> prepared_fiber(void (*entry)(), std::size_t stack_bytes) {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = std::make_unique<std::byte[]>(stack_bytes);
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber->context, entry, 0);
  return fiber;
}
/// Goes on there until it leaves.
void switch_to(Fiber& fiber);
/// Called on the fiber that runs: back to who switched to it.
void leave(Fiber& fiber);

/// An edge of order: what happened before a `release` of a gate is before what follows an `acquire` of it.
struct Gate {
  std::uint64_t place = 0;
};
void release(Gate& gate);
void acquire(Gate& gate);
/// Accesses between the two are nobody's.
void begin_unseen();
void end_unseen();

}  // namespace emulation
