// FileSink and the path calls: exact files on disks and in memory, and every failure told as what it is.
#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "check.h"
#include "storage/file_sink.h"
#include "storage/syscalls.h"
#include "storage_files.h"

namespace elastates {
namespace {

using namespace testing;

constexpr size_t kBlock = 64 << 10;

// Writes `bytes` in blocks, last block first, and finishes.
Status WriteBackwards(FileSink* sink, const std::string& bytes) {
  const AlignedBuffer buffer = Aligned(bytes);
  for (size_t i = (bytes.size() + kBlock - 1) / kBlock; i > 0; --i) {
    const size_t offset = (i - 1) * kBlock;
    const size_t length = std::min(kBlock, bytes.size() - offset);
    if (Status status = sink->WriteAt(buffer.get() + offset, length, offset); !status.ok()) return status;
  }
  return sink->Finish();
}

Status WriteFile(const std::string& path, const std::string& bytes, SinkOptions options = {}) {
  Result<std::unique_ptr<FileSink>> sink = FileSink::Create(path, bytes.size(), options);
  if (!sink.ok()) return sink.status();
  return WriteBackwards(sink.value().get(), bytes);
}

TEST(files_of_every_kind_of_length_are_exact) {
  for (const std::string& parent : ParentDirectories()) {
    const TempDir dir(parent);
    int i = 0;
    for (size_t size : {size_t{0}, size_t{1}, size_t{511}, size_t{4095}, size_t{4096}, size_t{4097},
                        kBlock - 1, kBlock, kBlock + 1, 5 * kBlock + 12345}) {
      for (bool allow_direct : {true, false}) {
        for (bool preallocate : {true, false}) {
          const std::string path = dir.File(std::to_string(i++));
          const std::string bytes = RandomBytes(size, i);
          CHECK_OK(WriteFile(path, bytes, {allow_direct, preallocate}));
          CHECK_EQ(std::filesystem::file_size(path), size);
          CHECK(ReadAll(path) == bytes);
        }
      }
    }
  }
}

TEST(never_overwrites_a_file) {
  const TempDir dir;
  WriteAll(dir.File("x"), "mine");
  const Status status = WriteFile(dir.File("x"), "other");
  CHECK_EQ(status.sys_errno(), EEXIST);
  CHECK_EQ(ReadAll(dir.File("x")), std::string("mine"));
}

TEST(refuses_writes_that_are_misplaced_or_misaligned) {
  const TempDir dir;
  const AlignedBuffer buffer = Aligned(std::string(3 * 4096, 'a'));
  auto sink = FileSink::Create(dir.File("x"), 10000, {});
  CHECK_OK(sink.status());
  FileSink& file = *sink.value();
  const auto code = [&](const char* data, size_t length, uint64_t offset) {
    return file.WriteAt(data, length, offset).code();
  };
  CHECK_EQ(code(buffer.get() + 1, 4096, 0), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), 4096, 1), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), 100, 0), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), 4096, 8192), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), 4096, UINT64_MAX - 4095), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), SIZE_MAX, 4096), StatusCode::kInvalidArgument);
  CHECK_EQ(code(buffer.get(), 10000 - 8192, 8192), StatusCode::kOk);
}

TEST(an_incomplete_file_does_not_finish) {
  const TempDir dir;
  const AlignedBuffer buffer = Aligned(std::string(4096, 'a'));
  auto sink = FileSink::Create(dir.File("x"), 8192, {});
  CHECK_OK(sink.status());
  CHECK_OK(sink.value()->WriteAt(buffer.get(), 4096, 0));
  const Status status = sink.value()->Finish();
  CHECK_EQ(status.code(), StatusCode::kInternal);
  CHECK(status.message().find("4096 of 8192") != std::string::npos);
}

TEST(interrupted_calls_are_made_again) {
  const TempDir dir;
  const std::string bytes = RandomBytes(3 * kBlock + 7, 1);
  for (const char* op : {"open", "fallocate", "write", "ftruncate", "fsync"}) {
    const ScopedFault fault(FailAt(op, 1, EINTR, 3));
    const std::string path = dir.File(op);
    CHECK_OK(WriteFile(path, bytes));
    CHECK_EQ(NumFaultsStruck(), 3);
    CHECK(ReadAll(path) == bytes);
  }
}

TEST(short_writes_resume_at_the_right_offset) {
  for (const std::string& parent : ParentDirectories()) {
    const TempDir dir(parent);
    const std::string bytes = RandomBytes(4 * kBlock + 4321, 2);
    int i = 0;
    for (bool allow_direct : {true, false}) {
      // Whole pages short, a few bytes short, and down to one byte written.
      for (size_t short_by : {size_t{4096}, size_t{5 * 4096}, size_t{1}, size_t{513}, size_t{1} << 30}) {
        const ScopedFault fault(ShortAt("write", 1, short_by, 6));
        const std::string path = dir.File(std::to_string(i++));
        CHECK_OK(WriteFile(path, bytes, {allow_direct, true}));
        CHECK_EQ(NumFaultsStruck(), 6);
        CHECK(ReadAll(path) == bytes);
      }
    }
  }
}

TEST(o_direct_refused_at_open_means_buffered) {
  const TempDir dir;
  const std::string bytes = RandomBytes(kBlock + 1, 3);
  const ScopedFault fault(FailAt("direct", 1, EINVAL));
  auto sink = FileSink::Create(dir.File("x"), bytes.size(), {});
  CHECK_OK(sink.status());
  CHECK(!sink.value()->direct());
  CHECK_OK(WriteBackwards(sink.value().get(), bytes));
  CHECK(ReadAll(dir.File("x")) == bytes);
}

TEST(o_direct_refused_at_write_time_means_buffered_from_there_on) {
  const TempDir dir;
  const std::string bytes = RandomBytes(4 * kBlock + 99, 4);
  Fault refuse = FailAt("write", 3, EINVAL, 1000);
  refuse.direct_only = true;
  const ScopedFault fault(refuse);
  auto sink = FileSink::Create(dir.File("x"), bytes.size(), {});
  CHECK_OK(sink.status());
  const bool was_direct = sink.value()->direct();
  CHECK_OK(WriteBackwards(sink.value().get(), bytes));
  CHECK_EQ(NumFaultsStruck(), was_direct ? 1 : 0);
  CHECK(!sink.value()->direct());
  CHECK(ReadAll(dir.File("x")) == bytes);
}

TEST(einval_without_o_direct_is_an_error) {
  const TempDir dir;
  const ScopedFault fault(FailAt("write", 1, EINVAL, 1000));
  CHECK_EQ(WriteFile(dir.File("x"), "abc").sys_errno(), EINVAL);
}

TEST(failures_keep_their_errno_and_name_the_file) {
  const TempDir dir;
  const std::string bytes = RandomBytes(2 * kBlock, 5);
  for (const char* op : {"open", "fallocate", "write", "ftruncate", "fsync", "close"}) {
    for (int error : {EIO, ENOSPC, EDQUOT}) {
      const std::string path = dir.File(std::string(op) + std::to_string(error));
      const ScopedFault fault(FailAt(op, 1, error));
      const Status status = WriteFile(path, bytes);
      CHECK_EQ(status.sys_errno(), error);
      CHECK(status.message().find(path) != std::string::npos);
      CHECK_EQ(status.code(), Status::FromErrno(error, "").code());
    }
  }
}

TEST(a_failed_reservation_leaves_no_file) {
  const TempDir dir;
  const ScopedFault fault(FailAt("fallocate", 1, ENOSPC));
  CHECK_EQ(WriteFile(dir.File("x"), std::string(5000, 'a')).code(), StatusCode::kNoSpace);
  CHECK(!std::filesystem::exists(dir.File("x")));
}

TEST(a_file_system_without_fallocate_still_works) {
  const TempDir dir;
  const ScopedFault fault(FailAt("fallocate", 1, EOPNOTSUPP));
  const std::string bytes = RandomBytes(kBlock + 3, 6);
  CHECK_OK(WriteFile(dir.File("x"), bytes));
  CHECK(ReadAll(dir.File("x")) == bytes);
}

TEST(a_full_file_system_fails_at_creation) {
  const TempDir dir;
  // More than any disk under a test has, less than ext4 refuses as a length.
  const Status status = FileSink::Create(dir.File("x"), uint64_t{12} << 40, {}).status();
  CHECK(status.code() == StatusCode::kNoSpace || status.sys_errno() == EFBIG);
  CHECK(!std::filesystem::exists(dir.File("x")));
  CHECK_EQ(FileSink::Create(dir.File("x"), UINT64_MAX, {}).status().code(), StatusCode::kInvalidArgument);
}

TEST(rename_never_replaces) {
  const TempDir dir;
  WriteAll(dir.File("a"), "a");
  WriteAll(dir.File("b"), "b");
  CHECK_EQ(RenameNoReplace(dir.File("a"), dir.File("b")).sys_errno(), EEXIST);
  CHECK_EQ(ReadAll(dir.File("b")), std::string("b"));
  CHECK_OK(RenameNoReplace(dir.File("a"), dir.File("c")));
  CHECK_EQ(ReadAll(dir.File("c")), std::string("a"));
  CHECK_EQ(RenameNoReplace(dir.File("a"), dir.File("d")).sys_errno(), ENOENT);
}

TEST(rename_works_where_the_kernel_cannot_promise) {
  const TempDir dir;
  WriteAll(dir.File("a"), "a");
  WriteAll(dir.File("b"), "b");
  const ScopedFault fault(FailAt("rename", 1, EINVAL, 2));
  CHECK_EQ(RenameNoReplace(dir.File("a"), dir.File("b")).sys_errno(), EEXIST);
  CHECK_OK(RenameNoReplace(dir.File("a"), dir.File("c")));
  CHECK_EQ(ReadAll(dir.File("c")), std::string("a"));
}

TEST(syncing_a_directory) {
  const TempDir dir;
  CHECK_OK(SyncDirectory(dir.path()));
  CHECK_EQ(SyncDirectory(dir.File("none")).sys_errno(), ENOENT);
  const ScopedFault fault(FailAt("fsync", 1, EIO));
  CHECK_EQ(SyncDirectory(dir.path()).sys_errno(), EIO);
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
