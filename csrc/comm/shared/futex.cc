#include "comm/shared/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449  // the same number on all architectures
#endif

namespace elastates {
namespace {

// linux/futex.h has these since 5.16.
struct Waiter {
  uint64_t value;
  uint64_t address;
  uint32_t flags;
  uint32_t reserved = 0;
};
constexpr uint32_t kSize32 = 2;
constexpr uint32_t kPrivate = 128;

constexpr auto kSingleWait = std::chrono::milliseconds(5);

std::atomic<bool> single_futex{false};

timespec ToTimespec(std::chrono::nanoseconds time) {
  const int64_t nanoseconds = std::max<int64_t>(time.count(), 0);
  return {static_cast<time_t>(nanoseconds / 1'000'000'000), static_cast<long>(nanoseconds % 1'000'000'000)};
}

uint64_t AddressOf(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

// False where the kernel has no such call.
bool WaitForBoth(const uint32_t* shared, uint32_t seen, const std::atomic<uint32_t>& stop,
                 WaitClock::time_point deadline) {
  const Waiter waiters[2] = {{seen, AddressOf(shared), kSize32}, {0, AddressOf(&stop), kSize32 | kPrivate}};
  const timespec until = ToTimespec(deadline.time_since_epoch());  // steady_clock is CLOCK_MONOTONIC
  const long woken = syscall(SYS_futex_waitv, waiters, 2, 0, &until, CLOCK_MONOTONIC);
  return woken >= 0 || (errno != ENOSYS && errno != EPERM);  // seccomp filters answer EPERM
}

}  // namespace

void FutexWait(const uint32_t* shared, uint32_t seen, const std::atomic<uint32_t>& stop,
               WaitClock::time_point deadline) {
  if (!single_futex.load(std::memory_order_relaxed)) {
    if (WaitForBoth(shared, seen, stop, deadline)) return;
    single_futex.store(true, std::memory_order_relaxed);
  }
  if (stop.load() != 0) return;
  const auto wait = std::min<WaitClock::duration>(deadline - WaitClock::now(), kSingleWait);
  const timespec relative = ToTimespec(wait);
  syscall(SYS_futex, shared, FUTEX_WAIT, seen, &relative, nullptr, 0);
}

void FutexWakeAll(const uint32_t* shared) {
  syscall(SYS_futex, shared, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void FutexStop(std::atomic<uint32_t>* stop) {
  stop->store(1);
  syscall(SYS_futex, stop, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void ForceSingleFutexForTesting(bool single) { single_futex.store(single); }

}  // namespace elastates
