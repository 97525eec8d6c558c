// One conformance suite for every WriteQueue: each request is answered once, and the files are right.
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "check.h"
#include "storage/write_queue.h"
#include "storage_files.h"

namespace elastates {
namespace {

using namespace testing;

constexpr size_t kBlock = 64 << 10;

using MakeQueue = std::function<std::unique_ptr<WriteQueue>()>;

// The implementations that work here.
std::vector<MakeQueue> Implementations() {
  std::vector<MakeQueue> makers = {[] { return MakeThreadWriteQueue(1); },
                                   [] { return MakeThreadWriteQueue(3); }, [] { return MakeWriteQueue(); }};
  for (int depth : {1, 4}) {
    if (!MakeUringWriteQueue(depth).ok()) continue;
    makers.push_back([depth] { return MakeUringWriteQueue(depth).value(); });
  }
  return makers;
}

// Collects the answers of a number of requests.
class Answers {
 public:
  std::function<void(Status)> Expect() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++num_expected_;
    return [this](Status status) {
      std::lock_guard<std::mutex> lock(mutex_);
      statuses_.push_back(std::move(status));
      changed_.notify_all();
    };
  }
  std::vector<Status> WaitAll() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return statuses_.size() >= num_expected_; });
    return statuses_;
  }
  size_t num_failed() {
    const std::vector<Status> statuses = WaitAll();
    return std::count_if(statuses.begin(), statuses.end(), [](const Status& status) { return !status.ok(); });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t num_expected_ = 0;
  std::vector<Status> statuses_;
};

// A file with its bytes, submitted block by block.
struct File {
  File(const TempDir& dir, const std::string& name, size_t size_bytes)
      : path(dir.File(name)), bytes(RandomBytes(size_bytes, 7)), buffer(Aligned(bytes)) {
    auto created = FileSink::Create(path, size_bytes, {});
    CHECK_OK(created.status());
    sink = std::move(created).value();
  }

  void Submit(WriteQueue* queue, Answers* answers) {
    for (uint64_t offset = 0; offset < bytes.size(); offset += kBlock) {
      const size_t length = std::min<uint64_t>(kBlock, bytes.size() - offset);
      queue->Submit({sink.get(), buffer.get() + offset, length, offset, answers->Expect()});
    }
  }

  std::string path;
  std::string bytes;
  AlignedBuffer buffer;
  std::unique_ptr<FileSink> sink;
};

TEST(several_files_at_a_time) {
  for (const std::string& parent : ParentDirectories()) {
    for (const MakeQueue& make : Implementations()) {
      const TempDir dir(parent);
      auto queue = make();
      Answers answers;
      File a(dir, "a", 20 * kBlock + 1), b(dir, "b", 7 * kBlock), c(dir, "c", 100);
      for (File* file : {&a, &b, &c}) file->Submit(queue.get(), &answers);
      CHECK_EQ(answers.num_failed(), 0u);
      for (File* file : {&a, &b, &c}) {
        CHECK_OK(file->sink->Finish());
        CHECK(ReadAll(file->path) == file->bytes);
      }
    }
  }
}

TEST(short_writes_interrupts_and_refused_o_direct_are_overcome) {
  Fault refuse = FailAt("write", 5, EINVAL, 1000);
  refuse.direct_only = true;
  const std::vector<Fault> faults = {ShortAt("write", 2, 4096, 7), ShortAt("write", 2, 777, 7),
                                     ShortAt("write", 1, 1 << 30, 4), FailAt("write", 3, EINTR, 3), refuse};
  for (const MakeQueue& make : Implementations()) {
    for (const Fault& fault : faults) {
      const TempDir dir;
      auto queue = make();
      Answers answers;
      File file(dir, "x", 12 * kBlock + 55);
      const ScopedFault scoped(fault);
      file.Submit(queue.get(), &answers);
      CHECK_EQ(answers.num_failed(), 0u);
      CHECK_GT(NumFaultsStruck(), 0);
      CHECK_OK(file.sink->Finish());
      CHECK(ReadAll(file.path) == file.bytes);
    }
  }
}

TEST(a_failure_is_that_of_one_request) {
  for (const MakeQueue& make : Implementations()) {
    for (int error : {EIO, ENOSPC, EDQUOT}) {
      const TempDir dir;
      auto queue = make();
      Answers answers;
      File bad(dir, "bad", 6 * kBlock);
      {
        const ScopedFault fault(FailAt("write", 4, error));
        bad.Submit(queue.get(), &answers);
        const auto statuses = answers.WaitAll();
        CHECK_EQ(answers.num_failed(), 1u);
        const auto failed =
            std::find_if(statuses.begin(), statuses.end(), [](const Status& s) { return !s.ok(); });
        CHECK_EQ(failed->sys_errno(), error);
      }
      CHECK(!bad.sink->Finish().ok());

      Answers more;
      File good(dir, "good", 3 * kBlock);
      good.Submit(queue.get(), &more);
      CHECK_EQ(more.num_failed(), 0u);
      CHECK_OK(good.sink->Finish());
    }
  }
}

TEST(a_misaligned_request_is_answered_and_more_may_follow) {
  for (const MakeQueue& make : Implementations()) {
    const TempDir dir;
    auto queue = make();
    Answers answers;
    File file(dir, "x", 2 * kBlock);
    for (int i = 0; i < 10; ++i)
      queue->Submit({file.sink.get(), file.buffer.get() + 1, 4096, 0, answers.Expect()});
    file.Submit(queue.get(), &answers);
    CHECK_EQ(answers.num_failed(), 10u);
    CHECK_OK(file.sink->Finish());
  }
}

TEST(close_drains_and_then_cancels) {
  for (const MakeQueue& make : Implementations()) {
    const TempDir dir;
    auto queue = make();
    Answers answers;
    File file(dir, "x", 30 * kBlock);
    file.Submit(queue.get(), &answers);
    std::thread other([&] { queue->Close(); });
    queue->Close();
    other.join();
    CHECK_EQ(answers.WaitAll().size(), 30u);
    CHECK_EQ(answers.num_failed(), 0u);
    CHECK_OK(file.sink->Finish());

    Answers late;
    queue->Submit({file.sink.get(), file.buffer.get(), kBlock, 0, late.Expect()});
    CHECK_EQ(late.WaitAll().front().code(), StatusCode::kCancelled);
  }
}

// The next block is submitted by the answer to the one before, as the chain of actors does.
struct Relay {
  WriteQueue* queue;
  File* file;
  std::function<void(Status)> finished;

  void Submit(uint64_t offset) {
    queue->Submit(
        {file->sink.get(), file->buffer.get() + offset, kBlock, offset, [this, offset](Status status) {
           const bool last = offset + kBlock == file->bytes.size();
           if (last || !status.ok()) return finished(std::move(status));
           Submit(offset + kBlock);
         }});
  }
};

TEST(answers_may_submit) {
  for (const MakeQueue& make : Implementations()) {
    const TempDir dir;
    auto queue = make();
    Answers answers;
    File file(dir, "x", 16 * kBlock);
    Relay relay{queue.get(), &file, answers.Expect()};
    relay.Submit(0);
    CHECK_EQ(answers.num_failed(), 0u);
    CHECK_OK(file.sink->Finish());
    CHECK(ReadAll(file.path) == file.bytes);
  }
}

TEST(many_threads_submit) {
  for (const MakeQueue& make : Implementations()) {
    const TempDir dir;
    auto queue = make();
    Answers answers;
    std::vector<std::unique_ptr<File>> files;
    for (int i = 0; i < 4; ++i)
      files.push_back(std::make_unique<File>(dir, std::to_string(i), 5 * kBlock + i));
    std::vector<std::thread> threads;
    for (auto& file : files) threads.emplace_back([&] { file->Submit(queue.get(), &answers); });
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(answers.num_failed(), 0u);
    for (auto& file : files) {
      CHECK_OK(file->sink->Finish());
      CHECK(ReadAll(file->path) == file->bytes);
    }
  }
}

}  // namespace
}  // namespace elastates

int main() { return RUN_ALL_TESTS(); }
