// Fibers under the thread sanitizer, which sees each as a thread: an access of one thread of a block that no barrier
// orders with another's is a race to it, in whatever order the fibers ran. Switching is by contexts, since it has
// longjmp for itself.
#include <sanitizer/tsan_interface.h>

#include "fibers.hpp"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
void __tsan_read_range(const void* from, std::size_t bytes);
}

namespace emulation {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr unsigned kNoOrder = __tsan_switch_to_fiber_no_sync;
ucontext_t scheduler;
void* scheduler_identity = nullptr;

}  // namespace

const bool fibers_are_threads = true;

std::unique_ptr<Fiber> make_fiber(void (*entry)()) {
  auto fiber = prepared_fiber(entry, kStackBytes);
  fiber->identity = __tsan_create_fiber(0);
  return fiber;
}

void switch_to(Fiber& fiber) {
  scheduler_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.identity, kNoOrder);
  swapcontext(&scheduler, &fiber.context);
}

void leave(Fiber& fiber) {
  __tsan_switch_to_fiber(scheduler_identity, kNoOrder);
  swapcontext(&fiber.context, &scheduler);
}

void release(Gate& gate) { __tsan_release(&gate.place); }
void acquire(Gate& gate) { __tsan_acquire(&gate.place); }
void begin_unseen() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
void end_unseen() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
void reads(const void* from, std::size_t bytes) { __tsan_read_range(from, bytes); }

}  // namespace emulation
