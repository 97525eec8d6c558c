// CopyPriority: copies take their time until somebody waits for them.
//
// While nobody waits, the copy threads run at nice value `nice` and Capture keeps to its pace (see
// capture.h); from the first waiter to the last the threads run at 0 and Capture cuts as fast as there are
// blocks.
//
// Lowering a nice value again needs CAP_SYS_NICE or RLIMIT_NICE >= 20, which most users have not, and a
// thread that cannot come back would make the gate slow for ever. Found on Linux 6.18 as a user without
// either: leaving SCHED_IDLE is refused for the same reason (EPERM), SCHED_OTHER <-> SCHED_BATCH is allowed
// both ways. So there, threads that nobody waits for run as SCHED_BATCH: with an equal share, but they do not
// preempt a trainer's thread when they wake up. Thread-safe.
#ifndef ELASTATES_ENGINE_COPY_PRIORITY_H_
#define ELASTATES_ENGINE_COPY_PRIORITY_H_

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

namespace elastates {

class CopyPriority {
 public:
  explicit CopyPriority(int nice);  // 0: threads are left as they are

  void AddCurrentThread();
  void OnWaiter(int delta);
  bool IsUrgent() const { return num_waiters_.load(std::memory_order_relaxed) > 0; }
  // Called, by the thread that waits, when copies become urgent. REQUIRES: it takes no lock of a waiter's.
  void SetUrgentListener(std::function<void()> listener);

  // Whether this process may lower a nice value to 0.
  static bool CanLowerNice();

 private:
  void ApplyLocked(pid_t tid) const;

  const int nice_;
  const bool uses_nice_;
  std::mutex mutex_;
  std::vector<pid_t> tids_;          // guarded by mutex_
  std::function<void()> on_urgent_;  // guarded by mutex_
  std::atomic<int> num_waiters_{0};  // written under mutex_
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_COPY_PRIORITY_H_
