// Atomic writing by POSIX calls: every one is checked, close() included, since network file systems report a full
// disk or quota as late as that.
#include "atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"

namespace fedpdpo {
namespace {

constexpr std::size_t largest_write = std::size_t{1} << 30;  // Linux writes at most 2 GiB - 4 KiB a call

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path, std::string option)
    : path_(std::move(path)), option_(std::move(option)) {
  if (path_.filename().empty()) throw InputError(path_.string(), "", "the name of a file", "a folder");
  temporary_ = path_.parent_path() / (fmt::format(".{}.tmp-{}", path_.filename().string(), ::getpid()));
  // No O_EXCL: in containers process numbers recur, and a killed run may have left this very name.
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) fail("cannot be created");
  present_ = true;
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (present_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), std::min(bytes.size(), largest_write));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("cannot be written");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail("cannot be synced");
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0) fail("cannot be closed");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be replaced");
  present_ = false;
  sync_folder(path_.parent_path());
}

void AtomicFile::fail(const char* action) const {
  const int error = errno;
  throw InputError(path_.string(), option_, "a file that can be written",
                   fmt::format("that it {} ({})", action, std::strerror(error)));
}

}  // namespace fedpdpo
