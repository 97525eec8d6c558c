// LoopbackNet: messengers of many members in one process, for tests of what is built upon messengers. Each
// member has a thread; messages take random times by seed; members can be killed, cut from each other,
// frozen.
//
//   LoopbackNet net(3, {7, 0.002});  // seed, longest delay in seconds
//   net.at(0).SendControl(net.member(1).id, "hello");
//   net.Kill(2, "its vote");  // the others: on_loss(kDead)
//
// Control messages between two members keep their order; data does not. Set every observer before the first
// message. The net outlives whatever uses its messengers.
#ifndef ELASTATES_TESTS_CSRC_COMM_LOOPBACK_H_
#define ELASTATES_TESTS_CSRC_COMM_LOOPBACK_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "comm/messenger.h"

namespace elastates {

struct LoopbackOptions {
  uint64_t seed = 0;
  double max_delay_s = 0;  // of every message and of the news of every loss, evenly distributed from 0
};

// One thread that runs functions at their times.
class LoopbackLoop {
 public:
  using Clock = std::chrono::steady_clock;
  using Task = std::function<void()>;

  explicit LoopbackLoop(std::string name) : thread_(std::move(name), [this] { Run(); }) {}
  ~LoopbackLoop() { Stop(); }

  void Post(Task task, Clock::time_point when = Clock::now()) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.emplace(std::make_pair(when, next_++), std::move(task));
    changed_.notify_all();
  }
  // Tasks wait until it is thawed, as those of a stopped process do; returns when none is running.
  void SetFrozen(bool frozen) {
    std::unique_lock<std::mutex> lock(mutex_);
    frozen_ = frozen;
    changed_.notify_all();
    if (frozen) changed_.wait(lock, [this] { return !running_; });
  }
  void Stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    thread_.Join();
  }
  bool IsOnThread() const { return std::this_thread::get_id() == thread_id_; }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    thread_id_ = std::this_thread::get_id();
    while (!stopped_) {
      if (frozen_ || tasks_.empty()) {
        changed_.wait(lock);
      } else if (const auto when = tasks_.begin()->first.first; when > Clock::now()) {
        changed_.wait_until(lock, when);
      } else {
        RunFirst(&lock);
      }
    }
  }
  void RunFirst(std::unique_lock<std::mutex>* lock) {
    const Task task = std::move(tasks_.begin()->second);
    tasks_.erase(tasks_.begin());
    running_ = true;
    lock->unlock();
    task();
    lock->lock();
    running_ = false;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::pair<Clock::time_point, uint64_t>, Task> tasks_;  // by time, then in the order of posting
  uint64_t next_ = 0;
  bool frozen_ = false, stopped_ = false, running_ = false;
  std::atomic<std::thread::id> thread_id_{};
  NamedThread thread_;  // last: it uses the others
};

class LoopbackNet;

class LoopbackMessenger : public Messenger {
 public:
  LoopbackMessenger(LoopbackNet* net, int index, Member self)
      : net_(net), index_(index), self_(std::move(self)), loop_("loop-" + std::to_string(index)) {}

  const Member& self() const override { return self_; }
  void Send(MemberId to, const MessageAddress& address, const void* data, size_t size_bytes,
            MessageDone done) override;
  void Receive(MemberId from, const MessageAddress& address, void* data, size_t size_bytes,
               MessageDone done) override;
  void Cancel(uint64_t group, uint32_t epoch, const Status& why) override;
  void SendControl(MemberId to, std::string content) override;
  void SetObserver(Observer observer) override { observer_ = std::move(observer); }
  void RunLater(double delay_s, std::function<void()> run) override {
    loop_.Post(std::move(run), LoopbackLoop::Clock::now() + ToDuration(delay_s));
  }

 private:
  friend class LoopbackNet;
  // group, epoch, sequence, tag: ordered so that Cancel() finds its own side by side.
  using Key = std::tuple<MemberId, uint64_t, uint32_t, uint64_t, uint32_t>;
  struct Posted {
    void* data;
    size_t size_bytes;
    MessageDone done;
  };

  static LoopbackLoop::Clock::duration ToDuration(double seconds) {
    return std::chrono::duration_cast<LoopbackLoop::Clock::duration>(std::chrono::duration<double>(seconds));
  }
  static Key KeyOf(MemberId peer, const MessageAddress& at) {
    return {peer, at.group, at.epoch, at.sequence, at.tag};
  }
  static Status LostStatus(MemberId peer, const std::string& why) {
    return Status(StatusCode::kPeerLost, "lost member " + std::to_string(peer) + ": " + why);
  }
  // What a new post must fail with; ok: nothing.
  Status CheckPost(MemberId peer, const MessageAddress& at) const {
    if (const auto found = cancelled_.find(at.group);
        found != cancelled_.end() && at.epoch <= found->second.first)
      return found->second.second;
    if (const auto found = lost_.find(peer); found != lost_.end()) return LostStatus(peer, found->second);
    return Status::Ok();
  }

  void Arrive(MemberId from, const MessageAddress& address, std::string content);
  void Depart(const Key& key, MemberId to, const MessageAddress& address);
  static void Hand(const std::string& content, Posted posted);
  void Lose(MemberId peer, Loss loss, const std::string& why, const std::string& proof);
  template <typename Matches>
  void CompleteAll(std::map<Key, Posted>* from, const Matches& matches, const Status& why);

  LoopbackNet* const net_;
  const int index_;
  const Member self_;
  Observer observer_;
  std::atomic<bool> dead_{false};

  // The loop's thread.
  std::map<Key, Posted> sends_, receives_;
  std::map<Key, std::string> unexpected_;
  std::map<uint64_t, std::pair<uint32_t, Status>> cancelled_;  // group -> up to which epoch, why
  std::map<MemberId, std::string> lost_;
  std::set<MemberId> proven_dead_;

  LoopbackLoop loop_;
};

class LoopbackNet {
 public:
  explicit LoopbackNet(int num_members, LoopbackOptions options = {})
      : options_(options), random_(options.seed) {
    for (int i = 0; i < num_members; ++i) Add();
  }
  ~LoopbackNet() {
    for (int i = 0; i < size(); ++i) at(i).loop_.Stop();  // before any of them goes
  }

  // One more member, linked to all; returns its index.
  int Add() {
    std::lock_guard<std::mutex> lock(mutex_);
    const int index = static_cast<int>(members_.size());
    Member self;
    self.id = 1000 + static_cast<MemberId>(index);
    self.host = "loopback";
    self.pid = 1 + index;
    members_.push_back(std::make_unique<LoopbackMessenger>(this, index, self));
    return index;
  }

  int size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(members_.size());
  }
  LoopbackMessenger& at(int index) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return *members_[static_cast<size_t>(index)];
  }
  const Member& member(int index) const { return at(index).self(); }

  // The member does nothing more, whatever it has posted; all others see it dead, each after a delay.
  void Kill(int index, const std::string& proof = "") {
    LoopbackMessenger& victim = at(index);
    victim.dead_.store(true);
    victim.loop_.SetFrozen(true);
    for (int i = 0; i < size(); ++i)
      if (i != index) Tell(i, index, Loss::kDead, "killed", proof);
  }
  // Both see each other as unreachable; what is on its way between them is dropped.
  void Cut(int a, int b) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      cut_.insert(std::minmax(a, b));
    }
    Tell(a, b, Loss::kUnreachable, "cut", "");
    Tell(b, a, Loss::kUnreachable, "cut", "");
  }
  // As SIGSTOP and SIGCONT: messages wait for it.
  void Freeze(int index) { at(index).loop_.SetFrozen(true); }
  void Thaw(int index) { at(index).loop_.SetFrozen(false); }
  // As an agent would: one member learns of a death.
  void Tell(int index, int lost, Loss loss, const std::string& why, const std::string& proof) {
    LoopbackMessenger* to = &at(index);
    const MemberId peer = member(lost).id;
    to->loop_.Post([=] { to->Lose(peer, loss, why, proof); }, ControlTime(lost, index));
  }

 private:
  friend class LoopbackMessenger;
  using Time = LoopbackLoop::Clock::time_point;

  int IndexOf(MemberId id) const { return static_cast<int>(id - 1000); }
  bool IsCut(int a, int b) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return cut_.count(std::minmax(a, b)) > 0;
  }
  Time RandomTime() {
    std::lock_guard<std::mutex> lock(mutex_);
    return RandomTimeLocked();
  }
  Time RandomTimeLocked() {
    std::uniform_real_distribution<double> delay(0, options_.max_delay_s);
    return LoopbackLoop::Clock::now() + LoopbackMessenger::ToDuration(delay(random_));
  }
  // Never before what `from` has sent to `to` earlier.
  Time ControlTime(int from, int to) {
    std::lock_guard<std::mutex> lock(mutex_);
    Time& last = last_control_[{from, to}];
    last = std::max(last, RandomTimeLocked());
    return last;
  }

  const LoopbackOptions options_;
  mutable std::mutex mutex_;
  std::mt19937_64 random_;                                   // guarded by mutex_
  std::set<std::pair<int, int>> cut_;                        // guarded by mutex_; the smaller first
  std::map<std::pair<int, int>, Time> last_control_;         // guarded by mutex_
  std::vector<std::unique_ptr<LoopbackMessenger>> members_;  // guarded by mutex_; only grows
};

// The bytes leave after a delay, so that a Cancel() in between finds them still posted.
inline void LoopbackMessenger::Send(MemberId to, const MessageAddress& address, const void* data,
                                    size_t size_bytes, MessageDone done) {
  loop_.Post([=, done = std::move(done)]() mutable {
    if (Status refused = CheckPost(to, address); !refused.ok()) return done(refused);
    const Key key = KeyOf(to, address);
    sends_[key] = Posted{const_cast<void*>(data), size_bytes, std::move(done)};
    loop_.Post([=] { Depart(key, to, address); }, net_->RandomTime());
  });
}

inline void LoopbackMessenger::Depart(const Key& key, MemberId to, const MessageAddress& address) {
  const auto found = sends_.find(key);
  if (found == sends_.end()) return;
  const Posted posted = std::move(found->second);
  sends_.erase(found);
  std::string content(static_cast<const char*>(posted.data), posted.size_bytes);
  const int peer = net_->IndexOf(to);
  if (!net_->IsCut(index_, peer)) {
    LoopbackMessenger* receiver = &net_->at(peer);
    receiver->loop_.Post([receiver, from = self_.id, address, content = std::move(content)]() mutable {
      receiver->Arrive(from, address, std::move(content));
    });
  }
  posted.done(Status::Ok());
}

inline void LoopbackMessenger::Arrive(MemberId from, const MessageAddress& address, std::string content) {
  if (!CheckPost(from, address).ok()) return;
  const Key key = KeyOf(from, address);
  const auto found = receives_.find(key);
  if (found == receives_.end()) {
    unexpected_[key] = std::move(content);
    return;
  }
  Posted posted = std::move(found->second);
  receives_.erase(found);
  Hand(content, std::move(posted));
}

inline void LoopbackMessenger::Hand(const std::string& content, Posted posted) {
  if (content.size() != posted.size_bytes)
    return posted.done(Status(StatusCode::kInvalidArgument, "a message of " + std::to_string(content.size()) +
                                                                " bytes for a receive of " +
                                                                std::to_string(posted.size_bytes)));
  if (!content.empty()) std::memcpy(posted.data, content.data(), content.size());
  posted.done(Status::Ok());
}

inline void LoopbackMessenger::Receive(MemberId from, const MessageAddress& address, void* data,
                                       size_t size_bytes, MessageDone done) {
  loop_.Post([=, done = std::move(done)]() mutable {
    const Key key = KeyOf(from, address);
    const auto found = unexpected_.find(key);
    if (found != unexpected_.end()) {  // complete before the loss, so still good
      const std::string content = std::move(found->second);
      unexpected_.erase(found);
      return Hand(content, Posted{data, size_bytes, std::move(done)});
    }
    if (Status refused = CheckPost(from, address); !refused.ok()) return done(refused);
    receives_[key] = Posted{data, size_bytes, std::move(done)};
  });
}

template <typename Matches>
void LoopbackMessenger::CompleteAll(std::map<Key, Posted>* from, const Matches& matches, const Status& why) {
  std::vector<MessageDone> done;
  for (auto i = from->begin(); i != from->end();) {
    if (matches(i->first)) {
      done.push_back(std::move(i->second.done));
      i = from->erase(i);
    } else {
      ++i;
    }
  }
  for (const MessageDone& call : done) call(why);
}

inline void LoopbackMessenger::Cancel(uint64_t group, uint32_t epoch, const Status& why) {
  if (dead_.load()) return;
  auto confirmed = std::make_shared<std::promise<void>>();
  std::future<void> wait = confirmed->get_future();
  loop_.Post([=] {
    auto& [up_to, reason] = cancelled_[group];
    if (reason.ok() || epoch > up_to) std::tie(up_to, reason) = std::make_tuple(epoch, why);
    const auto matches = [&](const Key& key) {
      return std::get<1>(key) == group && std::get<2>(key) <= epoch;
    };
    CompleteAll(&sends_, matches, why);
    CompleteAll(&receives_, matches, why);
    for (auto i = unexpected_.begin(); i != unexpected_.end();)
      i = matches(i->first) ? unexpected_.erase(i) : std::next(i);
    confirmed->set_value();
  });
  while (wait.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready)
    if (dead_.load()) return;  // killed meanwhile: nothing of it runs any more
}

inline void LoopbackMessenger::SendControl(MemberId to, std::string content) {
  if (dead_.load()) return;
  const int peer = net_->IndexOf(to);
  LoopbackMessenger* receiver = &net_->at(peer);
  receiver->loop_.Post(
      [this, receiver, from = self_.id, peer, content = std::move(content)] {
        if (receiver->lost_.count(from) > 0 || net_->IsCut(index_, peer)) return;
        if (receiver->observer_.on_control) receiver->observer_.on_control(from, content);
      },
      net_->ControlTime(index_, peer));
}

inline void LoopbackMessenger::Lose(MemberId peer, Loss loss, const std::string& why,
                                    const std::string& proof) {
  const bool is_new = lost_.emplace(peer, why).second;
  if (loss == Loss::kDead ? !proven_dead_.insert(peer).second : !is_new) return;
  const auto matches = [&](const Key& key) { return std::get<0>(key) == peer; };
  CompleteAll(&sends_, matches, LostStatus(peer, why));
  CompleteAll(&receives_, matches, LostStatus(peer, why));
  if (observer_.on_loss) observer_.on_loss(peer, loss, why, proof);
}

}  // namespace elastates

#endif  // ELASTATES_TESTS_CSRC_COMM_LOOPBACK_H_
