// A flag that signal handlers set.
#include "fedpdpo/fed/stop_signal.hpp"

#include <csignal>

namespace fedpdpo {
namespace {

volatile std::sig_atomic_t requested = 0;

void request(int) { requested = 1; }

}  // namespace

void watch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = request;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

bool stop_requested() { return requested != 0; }

void set_stop_requested(bool value) { requested = value ? 1 : 0; }

}  // namespace fedpdpo
