// Fibers of a plain build. A fiber is entered once by its context; from then on _setjmp and _longjmp switch, which make
// no system call.
#include "fibers.hpp"

namespace emulation {
namespace {

constexpr std::size_t kStackBytes = 128 << 10;
jmp_buf scheduler;

}  // namespace

const bool fibers_are_threads = false;

std::unique_ptr<Fiber> make_fiber(void (*entry)()) { return prepared_fiber(entry, kStackBytes); }

void switch_to(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.entered) _longjmp(fiber.place, 1);
  fiber.entered = true;
  setcontext(&fiber.context);
}

void leave(Fiber& fiber) {
  if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

void release(Gate&) {}
void acquire(Gate&) {}
void begin_unseen() {}
void end_unseen() {}
void reads(const void*, std::size_t) {}

}  // namespace emulation
