// A forked child as a taster.
#include "fedpdpo/io/child.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace fedpdpo {
namespace {

constexpr unsigned max_seconds = 300;

[[noreturn]] void be_the_child(const std::function<void()>& work) {
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTERM, SIGUSR1}) std::signal(signal, SIG_DFL);
  const int nowhere = ::open("/dev/null", O_WRONLY);
  ::dup2(nowhere, STDOUT_FILENO);
  ::dup2(nowhere, STDERR_FILENO);
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  ::alarm(max_seconds);
  try {
    work();
  } catch (...) {
  }
  ::_exit(0);
}

}  // namespace

bool survives_in_child(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child < 0) return true;  // no process to be had: the caller takes the risk
  if (child == 0) be_the_child(work);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return true;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace fedpdpo
