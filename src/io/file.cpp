// Mapping, whole-file writing, hashing of files.
#include "fedpdpo/io/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "atomic_file.hpp"
#include "digest.hpp"
#include "fedpdpo/core/error.hpp"

namespace fedpdpo {
namespace {

[[noreturn]] void fail_to_read(const std::filesystem::path& path, int error) {
  throw InputError(path.string(), "", "a readable file", std::strerror(error));
}

class Descriptor {
 public:
  /// Opens a regular file for reading.
  explicit Descriptor(const std::filesystem::path& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (value_ < 0) fail_to_read(path, errno);
    struct stat status {};
    const bool known = ::fstat(value_, &status) == 0;
    if (known && S_ISREG(status.st_mode)) {
      size_ = static_cast<std::size_t>(status.st_size);
      return;
    }
    const int error = known ? 0 : errno;
    ::close(value_);
    if (!known) fail_to_read(path, error);
    throw InputError(path.string(), "", "a regular file", S_ISDIR(status.st_mode) ? "a folder" : "a special file");
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int value() const { return value_; }
  std::size_t size() const { return size_; }

 private:
  int value_;
  std::size_t size_ = 0;
};

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file(path);
  if (file.size() == 0) return;  // an empty mapping is an error to mmap
  void* address = ::mmap(nullptr, file.size(), PROT_READ, MAP_SHARED, file.value(), 0);
  if (address == MAP_FAILED) fail_to_read(path, errno);
  data_ = static_cast<const std::byte*>(address);
  size_ = file.size();
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text.data(), text.size())));
}

void require_writable(const std::filesystem::path& path, std::string_view option) {
  std::error_code ignored;
  if (path.empty()) throw InputError("", option, "the name of a file", "nothing");
  if (path.filename().empty() || std::filesystem::is_directory(path, ignored)) {
    throw InputError("", option, "the name of a file", "the folder " + path.string());
  }
  const AtomicFile file(path, std::string(option));  // never committed
}

void sync_folder(const std::filesystem::path& folder) {
  const std::filesystem::path name = folder.empty() ? "." : folder;
  const int descriptor = ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw InputError(name.string(), "", "a folder", std::strerror(errno));
  const int error = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some file systems cannot sync a folder and say so; their renames are as durable as they get.
  if (error != 0 && error != EINVAL && error != ENOTSUP && error != EROFS) {
    throw InputError(name.string(), "", "a folder that can be synced", std::strerror(error));
  }
}

std::string sha256(std::span<const std::byte> bytes) {
  Sha256 digest;
  digest.update(bytes);
  return digest.finish();
}

std::string sha256_file(const std::filesystem::path& path) {
  const Descriptor file(path);
  Sha256 digest;
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  while (true) {
    const ssize_t count = ::read(file.value(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_to_read(path, errno);
    if (count == 0) return digest.finish();
    digest.update(std::span(buffer).first(static_cast<std::size_t>(count)));
  }
}

}  // namespace fedpdpo
