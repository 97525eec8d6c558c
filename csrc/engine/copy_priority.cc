#include "engine/copy_priority.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

namespace elastates {
namespace {

constexpr unsigned long long kCapSysNice = 1ull << 23;  // see capabilities(7)

bool HasCapSysNice() {
  FILE* status = std::fopen("/proc/self/status", "r");
  if (status == nullptr) return false;
  char line[256];
  unsigned long long effective = 0;
  while (std::fgets(line, sizeof(line), status) != nullptr) {
    if (std::sscanf(line, "CapEff: %llx", &effective) == 1) break;
  }
  std::fclose(status);
  return (effective & kCapSysNice) != 0;
}

}  // namespace

bool CopyPriority::CanLowerNice() {
  rlimit limit{};
  bool allowed = getrlimit(RLIMIT_NICE, &limit) == 0 && limit.rlim_cur >= 20;
  return allowed || HasCapSysNice();
}

CopyPriority::CopyPriority(int nice) : nice_(nice), uses_nice_(nice != 0 && CanLowerNice()) {}

void CopyPriority::AddCurrentThread() {
  if (nice_ == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  tids_.push_back(static_cast<pid_t>(syscall(SYS_gettid)));
  ApplyLocked(tids_.back());
}

void CopyPriority::OnWaiter(int delta) {
  std::lock_guard<std::mutex> lock(mutex_);
  const bool was_urgent = IsUrgent();
  num_waiters_.fetch_add(delta, std::memory_order_relaxed);
  if (IsUrgent() == was_urgent) return;
  for (pid_t tid : tids_) ApplyLocked(tid);
  if (IsUrgent() && on_urgent_) on_urgent_();
}

void CopyPriority::SetUrgentListener(std::function<void()> listener) {
  std::lock_guard<std::mutex> lock(mutex_);
  on_urgent_ = std::move(listener);
}

// A refusal leaves the thread as it is: slower or faster than wished for, never wrong.
void CopyPriority::ApplyLocked(pid_t tid) const {
  const bool urgent = IsUrgent();
  if (uses_nice_) {
    (void)setpriority(PRIO_PROCESS, static_cast<id_t>(tid), urgent ? 0 : nice_);
  } else {
    sched_param no_realtime{};
    (void)sched_setscheduler(tid, urgent ? SCHED_OTHER : SCHED_BATCH, &no_realtime);
  }
}

}  // namespace elastates
