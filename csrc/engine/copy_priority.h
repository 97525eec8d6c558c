// CopyPriority: copy threads step aside for the trainer until somebody waits for them.
//
// While nobody waits, the threads run at nice value `nice`; from the first waiter to the last they run at 0.
//
// Lowering a nice value again needs CAP_SYS_NICE or RLIMIT_NICE >= 20, which most users have not, and a
// thread that cannot come back would make the gate slow for ever. Found on Linux 6.18 as a user without
// either: leaving SCHED_IDLE is refused for the same reason (EPERM), SCHED_OTHER <-> SCHED_BATCH is allowed
// both ways. So there, threads that nobody waits for run as SCHED_BATCH: with an equal share, but they do not
// preempt a trainer's thread when they wake up. Thread-safe.
#ifndef ELASTATES_ENGINE_COPY_PRIORITY_H_
#define ELASTATES_ENGINE_COPY_PRIORITY_H_

#include <sys/types.h>

#include <mutex>
#include <vector>

namespace elastates {

class CopyPriority {
 public:
  explicit CopyPriority(int nice);  // 0: threads are left as they are

  void AddCurrentThread();
  void OnWaiter(int delta);

  // Whether this process may lower a nice value to 0.
  static bool CanLowerNice();

 private:
  void ApplyLocked(pid_t tid) const;

  const int nice_;
  const bool uses_nice_;
  std::mutex mutex_;
  std::vector<pid_t> tids_;  // guarded by mutex_
  int num_waiters_ = 0;      // guarded by mutex_
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_COPY_PRIORITY_H_
