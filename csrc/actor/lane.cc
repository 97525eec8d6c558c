#include "actor/lane.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace elastates {
namespace {

// Messages between two flushes: enough to make the lock of a hand-over cheap, few enough for the receiver to
// start soon.
constexpr uint32_t kFlushInterval = 256;
// About 2 us: longer than another lane needs to answer, shorter than a core may be burnt for.
constexpr int kSpins = 64;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Lane::Prepare(size_t max_messages, const std::vector<Lane*>& lanes) {
  lanes_ = lanes;
  local_.Reserve(max_messages);
  inbox_.reserve(max_messages);
  taken_.reserve(max_messages);
  outboxes_.resize(lanes.size());
  for (Inbox& outbox : outboxes_) outbox.reserve(max_messages);
}

void Lane::Start() {
  thread_ = NamedThread(name_, [this] { Run(); });
}

void Lane::Stop() {
  std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  posted_.notify_one();
}

void Lane::Run() {
  tid_.store(static_cast<pid_t>(syscall(SYS_gettid)), std::memory_order_release);
  do {
    do {
      HandleLocal();
      FlushOutboxes();
      if (has_mail_.load(std::memory_order_acquire)) HandleInbox();
    } while (!local_.empty() || has_outgoing_);
    running_.store(nullptr, std::memory_order_relaxed);
  } while (SpinUntilPosted() || SleepUntilPosted());
}

// At most one flush interval, so that neither the inbox nor the outboxes wait for actors that keep each other
// busy.
void Lane::HandleLocal() {
  for (uint32_t i = 0; i < kFlushInterval && !local_.empty(); ++i) {
    Dispatch(local_.Front());
    local_.DropFront();
  }
}

void Lane::HandleInbox() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    taken_.swap(inbox_);
    has_mail_.store(false, std::memory_order_relaxed);
  }
  for (const Message& message : taken_) Dispatch(message);
  taken_.clear();
}

void Lane::Dispatch(const Message& message) {
  running_.store(message.to, std::memory_order_relaxed);
  message.to->Handle(message);
  if (++dispatched_since_flush_ >= kFlushInterval) FlushOutboxes();
}

bool Lane::SpinUntilPosted() const {
  for (int i = 0; i < kSpins; ++i) {
    if (has_mail_.load(std::memory_order_acquire)) return true;
    Pause();
  }
  return false;
}

bool Lane::SleepUntilPosted() {
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_ = true;
  posted_.wait(lock, [this] { return !inbox_.empty() || stopped_; });
  sleeping_ = false;
  return !inbox_.empty();
}

void Lane::SendAway(Lane* lane, const Message& message) {
  outboxes_[lane->index_].push_back(message);
  has_outgoing_ = true;
}

void Lane::FlushOutboxes() {
  dispatched_since_flush_ = 0;
  if (!has_outgoing_) return;
  has_outgoing_ = false;
  for (size_t to = 0; to < outboxes_.size(); ++to) {
    if (outboxes_[to].empty()) continue;
    lanes_[to]->PostBatch(outboxes_[to]);
    outboxes_[to].clear();
  }
}

void Lane::PostBatch(const Inbox& batch) {
  std::lock_guard<std::mutex> lock(mutex_);
  inbox_.insert(inbox_.end(), batch.begin(), batch.end());
  has_mail_.store(true, std::memory_order_release);
  if (sleeping_) posted_.notify_one();
}

void Lane::Post(const Message& message) {
  std::lock_guard<std::mutex> lock(mutex_);
  inbox_.push_back(message);
  has_mail_.store(true, std::memory_order_release);
  if (sleeping_) posted_.notify_one();
}

}  // namespace elastates
