// Lane: one named thread, and the actors that live on it.
//
// One lane per device stream, storage queue or group of actors that are cheap enough to share one. What the
// actors of one lane tell each other changes the receiver's state on the spot, and puts it into the queue of
// those that get a turn. Messages to other lanes are gathered in outboxes and handed over in batches: one
// lock and one swap for many messages, which measured faster than any ring that is locked, or lock-free, per
// message. A lane without work spins for some microseconds, then sleeps. Owned by its Graph, which joins it.
#ifndef ELASTATES_ACTOR_LANE_H_
#define ELASTATES_ACTOR_LANE_H_

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "actor/message.h"
#include "base/thread.h"

namespace elastates {

// When what the lane's actors say to other lanes is handed over.
enum class Flush {
  kBatched,   // every few hundred acts and when there is nothing left to do: for short acts
  kEveryAct,  // after every act: for acts that take long, behind which a message must not wait
};

class Lane {
 public:
  Lane(std::string name, size_t index, Flush flush) : name_(std::move(name)), index_(index), flush_(flush) {}
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  const std::string& name() const { return name_; }
  pid_t tid() const { return tid_.load(std::memory_order_acquire); }  // 0 until the thread runs

  // Any thread.
  void Post(const Message& message);

  // The lane's own thread.
  template <typename... Args>
  void SendAway(Lane* lane, Args... args) {  // what a Message is made of
    outboxes_[lane->index_].emplace_back(args...);
    has_outgoing_ = true;
  }
  void GiveTurn(Actor* actor) { turns_.Emplace(actor); }  // REQUIRES: it does not wait for one already

  // The actor whose turn it is or whose message is being handled, null while idle. Any thread; a hint.
  const Actor* running() const { return running_.load(std::memory_order_relaxed); }

 private:
  friend class Graph;
  using Inbox = std::vector<Message>;

  // Of every lane before Start() of any.
  void Prepare(size_t num_actors, size_t max_messages, const std::vector<Lane*>& lanes);
  void Start();
  void Stop();  // idempotent; the thread leaves when it next has nothing to do
  void Join() { thread_.Join(); }

  void Run();
  void TakeTurns();
  void HandleInbox();
  bool SleepUntilPosted();  // false: stopped
  bool SpinUntilPosted() const;
  void FlushOutboxes();
  void PostBatch(Inbox* batch);

  const std::string name_;
  const size_t index_;
  const Flush flush_;

  // The lane's own thread.
  FixedRing<Actor*> turns_;      // who may be able to fire; each at most once
  std::vector<Inbox> outboxes_;  // one per lane
  std::vector<Lane*> lanes_;
  Inbox taken_;
  bool has_outgoing_ = false;
  std::atomic<const Actor*> running_{nullptr};

  alignas(64) std::mutex mutex_;  // not on a cache line that the thread writes per act
  std::condition_variable posted_;
  Inbox inbox_;            // guarded by mutex_
  bool sleeping_ = false;  // guarded by mutex_
  bool stopped_ = false;   // guarded by mutex_
  std::atomic<bool> has_mail_{false};

  std::atomic<pid_t> tid_{0};
  NamedThread thread_;
};

}  // namespace elastates

#endif  // ELASTATES_ACTOR_LANE_H_
