// flock on a file of its own: what is written itself is replaced again and again, and a lock belongs to the file
// replaced.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {

FileLock::FileLock(const std::filesystem::path& path, std::string_view option) : lock_(path) {
  lock_ += ".lock";
  descriptor_ = ::open(lock_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw InputError(lock_.string(), option, "a file that can be created", std::strerror(errno));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) == 0) return;
  const int error = errno;
  if (error == EWOULDBLOCK) {
    ::close(descriptor_);
    throw InputError(path.string(), option, "a file that no other process is writing", "one that has been begun");
  }
  log_warning(lock_.string() + ": no locks here (" + std::strerror(error) +
              "): another run that writes the same file is not noticed");
}

FileLock::~FileLock() {
  // While it is held, so that nobody else's is removed.
  std::error_code ignored;
  std::filesystem::remove(lock_, ignored);
  ::close(descriptor_);
}

}  // namespace fedpdpo
