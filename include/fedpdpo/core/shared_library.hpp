// A shared library that is opened while the program runs: what a machine may lack (cuBLASLt, NCCL) is asked for where
// it is used, and the program starts without it. No fmt here: .cu files reach it.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace fedpdpo {

/// No candidate could be opened, or the library lacks a symbol. what() is one line that says what was looked for.
class SharedLibraryError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An open library, closed with its last owner; what was taken from it must not be used afterwards. A library whose
/// threads or exit handlers outlive main (CUDA's do) belongs to an object that is never destroyed.
class SharedLibrary {
 public:
  /// The first candidate that can be opened: a name without a slash is looked for where the loader looks
  /// (LD_LIBRARY_PATH, the system's folders), anything else is a path. SharedLibraryError where there is none.
  explicit SharedLibrary(std::span<const std::string> candidates);

  /// The function `name`, whose type the caller takes from the library's header: function<decltype(f)>("f").
  /// SharedLibraryError where the library has no such symbol.
  template <class Function>
  Function* function(const char* name) const {
    static_assert(std::is_function_v<Function>, "expected a function's type, as of decltype(f)");
    return reinterpret_cast<Function*>(symbol(name));
  }

  /// The candidate that was opened.
  const std::string& name() const { return name_; }

 private:
  void* symbol(const char* name) const;

  std::string name_;
  std::shared_ptr<void> handle_;
};

/// Candidates for the library file `name`: as the loader looks for it, then beside the program and in the lib folder
/// next to the program's own, then in `folders`.
std::vector<std::string> library_candidates(const std::string& name, std::span<const std::filesystem::path> folders);

/// Where CUDA's libraries usually lie: lib64 and lib below $CUDA_HOME, $CUDA_PATH and /usr/local/cuda.
std::vector<std::filesystem::path> cuda_library_folders();

}  // namespace fedpdpo
