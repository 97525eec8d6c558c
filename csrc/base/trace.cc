#include "base/trace.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <utility>

namespace elastates::trace {
namespace {

// 56 bytes each. A thread of the engine makes two or three per chunk of 8 MiB: room for some 20 GB between
// two drains.
constexpr uint64_t kCapacity = 8192;

// One writer, the thread it belongs to; one reader, whoever holds the registry's mutex.
class Ring {
 public:
  Ring() : tid_(static_cast<pid_t>(syscall(SYS_gettid))), slots_(kCapacity) {
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    thread_name_ = name;
  }

  void Push(const Record& record) {
    const uint64_t at = head_.load(std::memory_order_relaxed);
    if (at - tail_.load(std::memory_order_acquire) == kCapacity) {
      num_dropped_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    slots_[at % kCapacity] = record;
    head_.store(at + 1, std::memory_order_release);
  }

  ThreadRecords Drain() {
    ThreadRecords drained{tid_, thread_name_, {}, num_dropped_.exchange(0, std::memory_order_relaxed)};
    const uint64_t end = head_.load(std::memory_order_acquire);
    uint64_t at = tail_.load(std::memory_order_relaxed);
    drained.records.reserve(end - at);
    for (; at < end; ++at) drained.records.push_back(slots_[at % kCapacity]);
    tail_.store(end, std::memory_order_release);
    return drained;
  }

 private:
  const pid_t tid_;
  std::string thread_name_;
  std::vector<Record> slots_;
  std::atomic<uint64_t> head_{0};
  std::atomic<uint64_t> tail_{0};
  std::atomic<uint64_t> num_dropped_{0};
};

struct Registry {
  std::mutex mutex;
  std::vector<std::shared_ptr<Ring>> rings;  // guarded by mutex; the other reference is the thread's
};

Registry& TheRegistry() {
  static Registry* registry = new Registry;  // never destroyed: threads may still record at exit
  return *registry;
}

Ring& RingOfThisThread() {
  thread_local std::shared_ptr<Ring> ring = [] {
    auto made = std::make_shared<Ring>();
    Registry& registry = TheRegistry();
    std::lock_guard<std::mutex> lock(registry.mutex);
    registry.rings.push_back(made);
    return made;
  }();
  return *ring;
}

// REQUIRES: the caller holds the mutex. Rings of threads that have ended go, once they are empty.
std::vector<ThreadRecords> DrainLocked(Registry* registry) {
  std::vector<ThreadRecords> drained;
  std::vector<std::shared_ptr<Ring>> living;
  for (std::shared_ptr<Ring>& ring : registry->rings) {
    const bool ended = ring.use_count() == 1;  // before it is drained: nothing can come after
    drained.push_back(ring->Drain());
    if (!ended) living.push_back(std::move(ring));
  }
  registry->rings = std::move(living);
  return drained;
}

}  // namespace

namespace internal {

std::atomic<bool> on{false};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Push(const Record& record) { RingOfThisThread().Push(record); }

}  // namespace internal

bool Start() {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  if (On()) return false;
  (void)DrainLocked(&registry);
  internal::on.store(true, std::memory_order_relaxed);
  return true;
}

void Stop() { internal::on.store(false, std::memory_order_relaxed); }

std::vector<ThreadRecords> Drain() {
  Registry& registry = TheRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  return DrainLocked(&registry);
}

}  // namespace elastates::trace
