// Job: the scope of a failure. Every register belongs to a job; an act inherits the job of what it consumes.
//
// When an act fails, its job fails: registers of that job that are still under way are returned without being
// acted on, and everything else goes on. A graph has a job of its own, which registers belong to unless a
// source says otherwise; when *that* one fails, sources end and the whole graph drains. Owned by whoever
// waits for it; must outlive its registers. Thread-safe. The first failure is sticky.
#ifndef ELASTATES_ACTOR_JOB_H_
#define ELASTATES_ACTOR_JOB_H_

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "base/status.h"

namespace elastates {

class Job {
 public:
  // on_failed runs once, on the thread of the first failure, after failed() has become true.
  explicit Job(std::function<void()> on_failed = nullptr) : on_failed_(std::move(on_failed)) {}

  bool failed() const { return failed_.load(std::memory_order_acquire); }

  // Keeps the first failure, with the name of the actor it happened in. Returns whether this was the first.
  bool Fail(const std::string& actor, const Status& status) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!status_.ok()) return false;
      status_ = status.WithContext(actor);
      failed_.store(true, std::memory_order_release);
    }
    if (on_failed_) on_failed_();
    return true;
  }

  Status status() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }

 private:
  const std::function<void()> on_failed_;
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  Status status_;  // guarded by mutex_
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_JOB_H_
