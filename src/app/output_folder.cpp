// Making a folder under another name first.
#include "output_folder.hpp"

#include "fedpdpo/core/error.hpp"
#include "fedpdpo/io/file.hpp"
#include "fedpdpo/model/private_modules.hpp"

namespace fedpdpo {
namespace {

namespace fs = std::filesystem;

/// Exported models, in it or one below it; or nothing at all.
bool may_be_replaced(const fs::path& folder) {
  if (!fs::is_directory(folder)) return false;
  if (fs::exists(folder / modules_config_name)) return true;
  for (const auto& entry : fs::directory_iterator(folder))
    if (!entry.is_directory() || !fs::exists(entry.path() / modules_config_name)) return false;
  return true;
}

}  // namespace

OutputFolder::OutputFolder(fs::path path, Existing existing) : path_((path / "").parent_path()) {
  work_ = path_;
  work_ += ".partial";
  try {
    if (fs::exists(path_) && !(fs::is_directory(path_) && fs::is_empty(path_))) {
      if (existing == Existing::keep)
        throw InputError(path_.string(), "--out", "a folder that does not exist (or --overwrite)", "an existing one");
      if (!may_be_replaced(path_))
        throw InputError(path_.string(), "--out", "a folder that `export` wrote, to be replaced", "something else");
    }
    fs::remove_all(work_);
    fs::create_directories(work_);
  } catch (const fs::filesystem_error& error) {
    throw InputError(work_.string(), "--out", "a folder that can be made", error.code().message());
  }
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  if (!work_.empty()) fs::remove_all(work_, ignored);
}

void OutputFolder::commit() {
  std::error_code error;
  fs::remove_all(path_, error);
  if (!error) fs::rename(work_, path_, error);
  if (error) throw InputError(path_.string(), "--out", "a folder that can be replaced", error.message());
  work_.clear();
  const fs::path parent = path_.parent_path();
  sync_folder(parent.empty() ? "." : parent);
}

}  // namespace fedpdpo
