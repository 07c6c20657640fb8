// Mapping, hashing, and the promise that a reader sees the old file or the new one, whole.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "../../src/io/atomic_file.hpp"
#include "fedpdpo/io/file.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::as_byte_span;
using test::read_text;
using test::TemporaryFolder;
using test::write_text;

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, HoldsTheBytes) {
  const TemporaryFolder folder;
  std::string text(100'000, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 % 251);
  write_text(folder / "a", text);
  EXPECT_EQ(text_of(MappedFile(folder / "a")), text);
}

TEST(MappedFile, AnEmptyFileIsEmpty) {
  const TemporaryFolder folder;
  write_text(folder / "a", "");
  EXPECT_TRUE(MappedFile(folder / "a").bytes().empty());
}

TEST(MappedFile, MovesItsMapping) {
  const TemporaryFolder folder;
  write_text(folder / "a", "first");
  write_text(folder / "b", "second");
  MappedFile file(folder / "a");
  MappedFile moved(std::move(file));
  EXPECT_EQ(text_of(moved), "first");
  moved = MappedFile(folder / "b");
  EXPECT_EQ(text_of(moved), "second");
}

TEST(MappedFile, OutlivesTheFilesName) {
  const TemporaryFolder folder;
  write_text(folder / "a", "still here");
  const MappedFile file(folder / "a");
  write_file_atomically(folder / "a", std::string_view("new"));
  EXPECT_EQ(text_of(file), "still here");
}

TEST(MappedFile, RefusesWhatIsNoReadableFile) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(MappedFile(folder / "none"), "none: expected a readable file, found No such file");
  EXPECT_INPUT_ERROR(MappedFile(folder.path()), "expected a regular file, found a folder");
  EXPECT_INPUT_ERROR(MappedFile("/dev/null"), "found a special file");
}

TEST(AtomicWriting, WritesAndReplaces) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", std::string_view("one"));
  EXPECT_EQ(read_text(folder / "a"), "one");
  write_file_atomically(folder / "a", std::string_view("two and more"));
  EXPECT_EQ(read_text(folder / "a"), "two and more");
  write_file_atomically(folder / "a", std::string_view(""));
  EXPECT_EQ(read_text(folder / "a"), "");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"a"});
}

TEST(AtomicWriting, WritesInTheWorkingFolder) {
  const TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  EXPECT_NO_THROW(write_file_atomically("plain-name", std::string_view("x")));
  EXPECT_NO_THROW(require_writable("plain-name", "--out"));
  std::filesystem::current_path(before);
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"plain-name"});
}

TEST(AtomicWriting, ObeysTheUmask) {
  const TemporaryFolder folder;
  const mode_t before = ::umask(027);
  write_file_atomically(folder / "a", std::string_view("x"));
  ::umask(before);
  struct stat status {};
  ASSERT_EQ(::stat((folder / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0640u);
}

TEST(AtomicWriting, FailsWithALineAndLeavesNothing) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(write_file_atomically(folder / "none" / "a", std::string_view("x")), "No such file or directory");
  std::filesystem::create_directory(folder / "taken");
  EXPECT_INPUT_ERROR(write_file_atomically(folder / "taken", std::string_view("x")), "taken");
  write_text(folder / "file", "f");
  EXPECT_INPUT_ERROR(write_file_atomically(folder / "file" / "a", std::string_view("x")), "Not a directory");
  EXPECT_INPUT_ERROR(write_file_atomically(folder / "x" / "", std::string_view("x")), "the name of a file");
  EXPECT_EQ(folder.contents(), (std::vector<std::string>{"file", "taken"}));
}

// The file-size limit stands in for a full disk: write() fails in the middle of the file.
TEST(AtomicWriting, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_text(folder / "a", "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string line;
  try {
    write_file_atomically(folder / "a", std::string(100'000, 'n'));
  } catch (const InputError& error) {
    line = error.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(line.find("cannot be written (File too large)"), std::string::npos) << line;
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"a"});
}

TEST(AtomicWriting, AnAbandonedFileLeavesTheOldOne) {
  const TemporaryFolder folder;
  write_text(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write(as_byte_span("half of the n"));
    EXPECT_EQ(folder.contents().size(), 2u);
    EXPECT_EQ(read_text(folder / "a"), "old");
  }
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"a"});
}

TEST(AtomicWriting, AKillInTheMiddleLeavesTheOldFile) {
  const TemporaryFolder folder;
  write_text(folder / "a", "old");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    AtomicFile file(folder / "a");
    file.write(as_byte_span("half of the n"));
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(read_text(folder / (".a.tmp-" + std::to_string(child))), "half of the n");
}

TEST(AtomicWriting, ALeftoverOfTheSameProcessNumberIsNoObstacle) {
  const TemporaryFolder folder;
  write_text(folder / (".a.tmp-" + std::to_string(::getpid())), "left by a killed run, and longer than the new text");
  write_file_atomically(folder / "a", std::string_view("new"));
  EXPECT_EQ(read_text(folder / "a"), "new");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"a"});
}

TEST(AtomicWriting, DoesNotFollowAPlantedLink) {
  const TemporaryFolder folder;
  write_text(folder / "precious", "keep");
  std::filesystem::create_symlink(folder / "precious", folder / (".a.tmp-" + std::to_string(::getpid())));
  EXPECT_INPUT_ERROR(write_file_atomically(folder / "a", std::string_view("new")), "cannot be created");
  EXPECT_EQ(read_text(folder / "precious"), "keep");
}

TEST(RequireWritable, AcceptsAndLeavesNothing) {
  const TemporaryFolder folder;
  write_text(folder / "a", "old");
  EXPECT_NO_THROW(require_writable(folder / "a", "--out"));
  EXPECT_NO_THROW(require_writable(folder / "b", "--out"));
  EXPECT_EQ(read_text(folder / "a"), "old");
  EXPECT_EQ(folder.contents(), std::vector<std::string>{"a"});
}

TEST(RequireWritable, NamesTheOption) {
  const TemporaryFolder folder;
  EXPECT_INPUT_ERROR(
      require_writable(folder / "none" / "a", "--out"),
      "none/a: --out: expected a file that can be written, found that it cannot be created (No such file");
  EXPECT_INPUT_ERROR(require_writable(folder.path(), "--out"), "--out: expected the name of a file, found the folder");
  EXPECT_INPUT_ERROR(require_writable("", "--out"), "--out: expected the name of a file, found nothing");
}

TEST(SyncFolder, NeedsAFolder) {
  const TemporaryFolder folder;
  write_text(folder / "a", "x");
  EXPECT_NO_THROW(sync_folder(folder.path()));
  EXPECT_NO_THROW(sync_folder(""));
  EXPECT_INPUT_ERROR(sync_folder(folder / "none"), "expected a folder");
  EXPECT_INPUT_ERROR(sync_folder(folder / "a"), "expected a folder");
}

// FIPS 180-2 examples.
TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(sha256(as_byte_span("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256(as_byte_span("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256(as_byte_span("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(Sha256, OfAFileIsThatOfItsBytes) {
  const TemporaryFolder folder;
  const std::string million(1'000'000, 'a');
  write_text(folder / "a", million);
  EXPECT_EQ(sha256_file(folder / "a"), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  const std::string long_text(3'000'001, 'b');  // several read() calls
  write_text(folder / "b", long_text);
  EXPECT_EQ(sha256_file(folder / "b"), sha256(as_byte_span(long_text)));
  EXPECT_INPUT_ERROR(sha256_file(folder / "none"), "No such file");
  EXPECT_INPUT_ERROR(sha256_file(folder.path()), "a folder");
}

}  // namespace
}  // namespace fedpdpo
