// The write queue of writer threads: works everywhere.
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "storage/write_queue.h"

namespace elastates {
namespace {

class ThreadWriteQueue final : public WriteQueue {
 public:
  explicit ThreadWriteQueue(int num_threads) {
    for (int i = 0; i < num_threads; ++i) {
      threads_.emplace_back("ds-write-" + std::to_string(i), [this] { Work(); });
    }
  }
  ~ThreadWriteQueue() override { Close(); }

  void Submit(WriteRequest request) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!closed_) {
        requests_.push_back(std::move(request));
        arrived_.notify_one();
        return;
      }
    }
    request.done(Status(StatusCode::kCancelled, "the write queue is closed"));
  }

  void Close() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      arrived_.notify_all();
    }
    std::lock_guard<std::mutex> lock(join_mutex_);  // two threads may close at a time, one joins
    for (NamedThread& thread : threads_) thread.Join();
  }

  const char* name() const override { return "threads"; }

 private:
  void Work() {
    while (std::optional<WriteRequest> request = Take()) {
      request->done(Write(*request));
    }
  }

  // Blocks; nothing once the queue is closed and empty.
  std::optional<WriteRequest> Take() {
    std::unique_lock<std::mutex> lock(mutex_);
    arrived_.wait(lock, [this] { return closed_ || !requests_.empty(); });
    if (requests_.empty()) return std::nullopt;
    WriteRequest request = std::move(requests_.front());
    requests_.pop_front();
    return request;
  }

  static Status Write(const WriteRequest& request) {
    try {
      return request.sink->WriteAt(request.data, request.length, request.offset);
    } catch (const std::exception& error) {
      return Status(StatusCode::kInternal, std::string("a writer thread caught: ") + error.what());
    }
  }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<WriteRequest> requests_;  // guarded by mutex_
  bool closed_ = false;                // guarded by mutex_
  std::mutex join_mutex_;
  std::vector<NamedThread> threads_;  // joined under join_mutex_
};

}  // namespace

std::unique_ptr<WriteQueue> MakeThreadWriteQueue(int num_threads) {
  return std::make_unique<ThreadWriteQueue>(num_threads < 1 ? 1 : num_threads);
}

}  // namespace elastates
