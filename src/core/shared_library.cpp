// dlopen and dlsym, with errors of one line.
#include "fedpdpo/core/shared_library.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <system_error>

namespace fedpdpo {
namespace {

std::string loader_reason() {
  const char* reason = ::dlerror();
  std::string line = reason == nullptr ? "unknown reason" : reason;
  for (char& c : line)
    if (c == '\n') c = ' ';
  return line;
}

}  // namespace

SharedLibrary::SharedLibrary(std::span<const std::string> candidates) {
  std::string tried;
  for (const std::string& candidate : candidates) {
    if (void* handle = ::dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL); handle != nullptr) {
      handle_ = {handle, [](void* open) { (void)::dlclose(open); }};
      name_ = candidate;
      return;
    }
    // Of a file that is there the reason matters: another architecture, a library that it needs in turn.
    const std::string reason = loader_reason();
    const bool absent = reason == candidate + ": cannot open shared object file: No such file or directory";
    tried += (tried.empty() ? "" : ", ") + (absent ? candidate : candidate + " (" + reason + ")");
  }
  throw SharedLibraryError("no such library could be opened: looked for " + tried);
}

void* SharedLibrary::symbol(const char* name) const {
  void* found = ::dlsym(handle_.get(), name);
  if (found == nullptr) throw SharedLibraryError(name_ + " has no " + name + ": another version?");
  return found;
}

std::vector<std::string> library_candidates(const std::string& name, std::span<const std::filesystem::path> folders) {
  std::vector<std::string> candidates = {name};
  std::error_code no_proc;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", no_proc);
  if (!no_proc) {
    candidates.push_back((program.parent_path() / name).string());
    candidates.push_back((program.parent_path().parent_path() / "lib" / name).string());
  }
  for (const std::filesystem::path& folder : folders) candidates.push_back((folder / name).string());
  return candidates;
}

std::vector<std::filesystem::path> cuda_library_folders() {
  std::vector<std::filesystem::path> folders;
  const auto below = [&folders](const std::filesystem::path& root) {
    for (const char* lib : {"lib64", "lib"}) folders.push_back(root / lib);
  };
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* root = std::getenv(variable); root != nullptr && *root != '\0') below(root);
  below("/usr/local/cuda");
  return folders;
}

}  // namespace fedpdpo
