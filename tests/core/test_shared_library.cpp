// Shared libraries opened while the program runs: which candidate is taken, and what is said where there is none.
#include <dlfcn.h>
#include <stdlib.h>

#include <filesystem>
#include <optional>

#include "core/module/module.hpp"
#include "fedpdpo/core/shared_library.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

const std::string module_file = FEDPDPO_TEST_MODULE;

std::string error_of(const auto& action) {
  try {
    action();
  } catch (const SharedLibraryError& error) {
    EXPECT_TRUE(test::is_one_line(error.what())) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no SharedLibraryError";
  return {};
}

bool is_loaded(const std::string& file) {
  void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle != nullptr) ::dlclose(handle);
  return handle != nullptr;
}

TEST(SharedLibrary, FunctionsOfAFileAreCalled) {
  const SharedLibrary library(std::vector{module_file});
  EXPECT_EQ(library.name(), module_file);
  EXPECT_EQ(library.function<decltype(fedpdpo_test_triple)>("fedpdpo_test_triple")(14), 42);
}

TEST(SharedLibrary, ANameIsLookedForWhereTheLoaderLooks) {
  const SharedLibrary library(std::vector<std::string>{"libm.so.6"});
  EXPECT_EQ(library.function<double(double)>("floor")(-2.5), -3.0);
}

TEST(SharedLibrary, TheFirstCandidateThatOpensIsTaken) {
  const test::TemporaryFolder folder;
  test::write_text(folder / "broken.so", "no library");
  std::filesystem::copy_file(module_file, folder / "copy.so");
  const std::vector candidates = {(folder / "absent.so").string(), (folder / "broken.so").string(),
                                  (folder / "copy.so").string(), module_file};
  EXPECT_EQ(SharedLibrary(candidates).name(), candidates[2]);
}

TEST(SharedLibrary, WhereNoneOpensTheErrorNamesAllAndWhyAFileThatIsThereDidNot) {
  const test::TemporaryFolder folder;
  test::write_text(folder / "broken.so", "no library");
  const std::string absent = (folder / "absent.so").string(), broken = (folder / "broken.so").string();
  const std::string line = error_of([&] { SharedLibrary(std::vector{absent, broken}); });
  EXPECT_TRUE(line.starts_with("no such library could be opened: looked for " + absent + ", " + broken + " (")) << line;
  EXPECT_NE(line.find("(" + broken + ": file too short)"), std::string::npos) << line;
}

TEST(SharedLibrary, AMissingSymbolIsNamedWithTheLibrary) {
  const SharedLibrary library(std::vector{module_file});
  EXPECT_EQ(error_of([&] { library.function<void()>("fedpdpo_test_absent"); }),
            module_file + " has no fedpdpo_test_absent: another version?");
}

TEST(SharedLibrary, IsClosedWithItsLastOwner) {
  const test::TemporaryFolder folder;
  const std::string file = (folder / "copy.so").string();
  std::filesystem::copy_file(module_file, file);
  std::optional<SharedLibrary> first(std::vector{file});
  std::optional<SharedLibrary> second = first;
  first.reset();
  EXPECT_TRUE(is_loaded(file));
  EXPECT_EQ(second->function<decltype(fedpdpo_test_triple)>("fedpdpo_test_triple")(-1), -3);
  second.reset();
  EXPECT_FALSE(is_loaded(file));
}

TEST(LibraryCandidates, TheLoaderThenTheProgramThenFolders) {
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::vector<std::filesystem::path> folders = {"/a/lib64", "/b"};
  EXPECT_EQ(library_candidates("libx.so.2", folders),
            (std::vector<std::string>{"libx.so.2", program / "libx.so.2", program.parent_path() / "lib" / "libx.so.2",
                                      "/a/lib64/libx.so.2", "/b/libx.so.2"}));
}

class CudaLibraryFolders : public testing::Test {
 protected:
  void SetUp() override {
    ::unsetenv("CUDA_HOME");
    ::unsetenv("CUDA_PATH");
  }
  void TearDown() override { SetUp(); }
};

TEST_F(CudaLibraryFolders, TheEnvironmentComesBeforeTheUsualPlace) {
  const std::vector<std::filesystem::path> usual = {"/usr/local/cuda/lib64", "/usr/local/cuda/lib"};
  EXPECT_EQ(cuda_library_folders(), usual);
  ::setenv("CUDA_HOME", "", 1);
  EXPECT_EQ(cuda_library_folders(), usual);
  ::setenv("CUDA_HOME", "/opt/cuda", 1);
  ::setenv("CUDA_PATH", "/opt/other", 1);
  EXPECT_EQ(cuda_library_folders(),
            (std::vector<std::filesystem::path>{"/opt/cuda/lib64", "/opt/cuda/lib", "/opt/other/lib64",
                                                "/opt/other/lib", usual[0], usual[1]}));
}

}  // namespace
}  // namespace fedpdpo
