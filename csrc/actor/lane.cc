#include "actor/lane.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace elastates {
namespace {

// Acts between two flushes: enough to make the lock of a hand-over cheap, few enough for the receiver to
// start soon.
constexpr int kFlushInterval = 256;
// Acts in a row before the lane's other actors get their turn.
constexpr int kMaxBurst = 16;
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

void Lane::Prepare(size_t num_actors, size_t max_messages, const std::vector<Lane*>& lanes) {
  lanes_ = lanes;
  turns_.Reserve(num_actors);
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
      TakeTurns();
      if (has_mail_.load(std::memory_order_acquire)) HandleInbox();
      FlushOutboxes();
    } while (!turns_.empty());
    running_.store(nullptr, std::memory_order_relaxed);
  } while (SpinUntilPosted() || SleepUntilPosted());
}

// At most one flush interval, so that neither the inbox nor the outboxes wait for actors that keep each other
// busy; where acts take long, that is one act.
void Lane::TakeTurns() {
  const bool acts_are_long = flush_ == Flush::kEveryAct;
  const int max_acts = acts_are_long ? 1 : kFlushInterval;
  const int max_burst = acts_are_long ? 1 : kMaxBurst;
  for (int acts = 0; acts < max_acts && !turns_.empty();) {
    Actor* actor = turns_.Front();
    turns_.DropFront();
    running_.store(actor, std::memory_order_relaxed);
    acts += 1 + actor->TakeTurn(max_burst);  // a turn without an act takes time too
  }
}

void Lane::HandleInbox() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    taken_.swap(inbox_);
    has_mail_.store(false, std::memory_order_relaxed);
  }
  for (const Message& message : taken_) {
    running_.store(message.to, std::memory_order_relaxed);
    message.to->Handle(message);
  }
  taken_.clear();
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

void Lane::FlushOutboxes() {
  if (!has_outgoing_) return;
  has_outgoing_ = false;
  for (size_t to = 0; to < outboxes_.size(); ++to) {
    if (outboxes_[to].empty()) continue;
    lanes_[to]->PostBatch(&outboxes_[to]);
  }
}

// Leaves `batch` empty, with room for as much as before: all inboxes and outboxes are of one capacity.
void Lane::PostBatch(Inbox* batch) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (inbox_.empty()) {
    inbox_.swap(*batch);
  } else {
    inbox_.insert(inbox_.end(), batch->begin(), batch->end());
    batch->clear();
  }
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
