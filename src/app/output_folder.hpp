// A folder that is written whole or not at all.
#pragma once

#include <filesystem>

namespace fedpdpo {

enum class Existing { keep, replace };

/// Everything is written into PATH.partial, which commit() gives its name. What is not committed is removed.
class OutputFolder {
 public:
  /// InputError (naming --out) where PATH exists and is to be kept, or is something that export did not write, or where
  /// the folder cannot be made. An empty folder may always be replaced.
  OutputFolder(std::filesystem::path path, Existing existing);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  /// Where to write.
  const std::filesystem::path& work() const { return work_; }
  void commit();

 private:
  std::filesystem::path path_, work_;
};

}  // namespace fedpdpo
