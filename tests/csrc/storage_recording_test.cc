// The record of file operations: complete, in order, honest about results, and gone when it is off.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <future>

#include "storage/file_sink.h"
#include "storage/recording.h"
#include "storage/small_file.h"
#include "storage/syscalls.h"
#include "storage/write_queue.h"
#include "storage_files.h"

namespace elastates {
namespace testing {
namespace {

struct ScopedRecording {
  ScopedRecording() { StartRecording(); }
  ~ScopedRecording() { StopRecording(); }
};

std::string Told(const FileOperation& operation) {
  const std::string name = std::filesystem::path(operation.path).filename().string();
  const std::string to = std::filesystem::path(operation.destination).filename().string();
  return operation.op + " " + name + (to.empty() ? "" : " " + to);
}

std::string ToldAll() {
  std::string told;
  for (const FileOperation& operation : TakeRecording()) told += Told(operation) + "\n";
  return told;
}

TEST(every_operation_is_told_in_order_under_its_present_name) {
  const TempDir dir;
  const ScopedRecording recording;
  CHECK_EQ(sys::Mkdir(dir.File("a"), 0755), 0);
  CHECK(WriteSynced(dir.File("a/file"), "text").ok());
  CHECK(SyncDirectory(dir.File("a")).ok());
  CHECK_EQ(sys::Link(dir.File("a/file"), dir.File("a/second")), 0);
  CHECK_EQ(sys::Rename(dir.File("a/file"), dir.File("a/third")), 0);
  RecordMark("here");
  CHECK(RenameNoReplace(dir.File("a"), dir.File("b")).ok());
  CHECK_EQ(sys::Unlink(dir.File("b/second")), 0);
  CHECK_EQ(sys::Unlink(dir.File("b/third")), 0);
  CHECK_EQ(sys::Rmdir(dir.File("b")), 0);
  CHECK_EQ(ToldAll(),
           "mkdir a\ncreate file\nwrite file\nfsync file\nfsync_directory a\nlink file second\n"
           "rename file third\nmark here\nrename a b\nunlink second\nunlink third\nrmdir b\n");
}

TEST(an_operation_has_bytes_result_and_times) {
  const TempDir dir;
  const ScopedRecording recording;
  CHECK(WriteSynced(dir.File("file"), "text").ok());
  CHECK_EQ(sys::Unlink(dir.File("none")), -ENOENT);
  const auto log = TakeRecording();
  CHECK_EQ(log.size(), size_t{4});
  CHECK_EQ(log[1].data, "text");
  CHECK_EQ(log[1].size_bytes, uint64_t{4});
  CHECK_EQ(log[1].result, int64_t{4});
  CHECK_EQ(log[3].result, int64_t{-ENOENT});
  for (size_t i = 0; i < log.size(); ++i) {
    CHECK(log[i].began_ns < log[i].ended_ns);
    CHECK(i == 0 || log[i - 1].ended_ns < log[i].began_ns);
  }
}

TEST(data_files_are_recorded_by_every_queue) {
  const TempDir dir;
  const std::string bytes = RandomBytes(3 * 4096 + 100, 5);
  const AlignedBuffer buffer = Aligned(bytes);
  std::vector<std::unique_ptr<WriteQueue>> queues;
  queues.push_back(MakeThreadWriteQueue(1));
  queues.push_back(MakeWriteQueue(1));
  for (const auto& queue : queues) {
    const ScopedRecording recording;
    auto sink = FileSink::Create(dir.File(queue->name()), bytes.size());
    CHECK(sink.ok());
    std::promise<Status> written;
    queue->Submit(
        {sink.value().get(), buffer.get(), bytes.size(), 0, [&](Status s) { written.set_value(s); }});
    CHECK(written.get_future().get().ok());
    CHECK(sink.value()->Finish().ok());
    const auto log = TakeRecording();
    CHECK_EQ(log.size(), size_t{5});
    CHECK_EQ(log[1].op + log[2].op + log[3].op + log[4].op, "fallocatewriteftruncatefsync");
    CHECK_EQ(log[2].data.substr(0, bytes.size()), bytes);
    CHECK(log[2].result >= static_cast<int64_t>(bytes.size()) && log[2].ended_ns < log[3].began_ns);
  }
  std::filesystem::remove(dir.File("threads"));
}

TEST(an_operation_that_begins_before_the_recording_does_not_end_in_it) {
  StartRecording();
  const uint64_t ticket = recording::Begin(FileOperation{});
  StartRecording();
  recording::Begin(FileOperation{});
  recording::End(ticket, 7);
  CHECK_EQ(TakeRecording().size(), size_t{1});
  CHECK_EQ(TakeRecording()[0].ended_ns, uint64_t{0});
  StopRecording();
}

TEST(nothing_is_recorded_while_it_is_off) {
  const TempDir dir;
  CHECK(!recording::IsOn());
  CHECK(WriteSynced(dir.File("file"), "text").ok());
  RecordMark("nobody hears");
  CHECK(TakeRecording().empty());
}

// In a child: what it had time to do.
int NumFilesBeforeDeath(uint64_t nth) {
  const TempDir dir;
  const pid_t child = fork();
  if (child == 0) {
    DieBefore(nth);
    for (const char* name : {"0", "1", "2"}) (void)WriteSynced(dir.File(name), "text");
    _exit(0);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, nth <= 9);
  const auto files = std::filesystem::directory_iterator(dir.path());
  return static_cast<int>(std::distance(begin(files), end(files)));
}

TEST(a_process_dies_before_the_operation_it_was_told) {
  CHECK_EQ(NumFilesBeforeDeath(1), 0);
  CHECK_EQ(NumFilesBeforeDeath(2), 1);
  CHECK_EQ(NumFilesBeforeDeath(4), 1);
  CHECK_EQ(NumFilesBeforeDeath(5), 2);
  CHECK_EQ(NumFilesBeforeDeath(10), 3);
}

}  // namespace
}  // namespace testing
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
