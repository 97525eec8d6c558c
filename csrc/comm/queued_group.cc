#include "comm/queued_group.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <set>
#include <vector>

#include "comm/loss_text.h"

namespace elastates {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kScratchAlignment = 64;
constexpr double kLongestTimeoutS = 1e8;  // three years; what is longer overflows the clock

int RankOf(const View& view, MemberId id) {
  for (size_t rank = 0; rank < view.members.size(); ++rank) {
    if (view.members[rank].id == id) return static_cast<int>(rank);
  }
  return -1;
}

Clock::time_point After(double timeout_s) {
  const double bounded_s = std::clamp(timeout_s, 0.0, kLongestTimeoutS);
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bounded_s));
}

std::string Seconds(double timeout_s) {
  std::string text = std::to_string(timeout_s);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace

// What the body sees of the group. Everything it posts is counted under the group's mutex.
class QueuedGroup::RunningOperation : public Operation {
 public:
  RunningOperation(QueuedGroup& group, std::shared_ptr<const View> view, uint64_t sequence, double timeout_s)
      : group_(group),
        view_(std::move(view)),
        rank_(RankOf(*view_, group.self_)),
        sequence_(sequence),
        timeout_s_(timeout_s),
        deadline_(After(timeout_s)) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(view_->members.size()); }
  const View& view() const override { return *view_; }
  uint64_t sequence() const override { return sequence_; }

  void Send(int to, uint32_t tag, const void* data, size_t size_bytes) override {
    const int64_t index = Post(to);
    if (index < 0) return;
    group_.messenger_.Send(view_->members[to].id, Address(tag), data, size_bytes,
                           [this, index](Status status) { Finish(index, std::move(status)); });
  }

  void Receive(int from, uint32_t tag, void* data, size_t size_bytes) override {
    const int64_t index = Post(from);
    if (index < 0) return;
    group_.messenger_.Receive(view_->members[from].id, Address(tag), data, size_bytes,
                              [this, index](Status status) { Finish(index, std::move(status)); });
  }

  Status Wait() override {
    const Status status = WaitFirst(posted_.size());
    posted_.clear();  // nothing is under way: nobody else looks at it
    num_done_in_order_ = 0;
    return status;
  }

  Status WaitFirst(size_t count) override {
    std::unique_lock<std::mutex> lock(group_.mutex_);
    const auto is_over = [&] {
      return !error_.ok() || group_.phase_ != Phase::kOpen || num_done_in_order_ >= count;
    };
    wanted_ = count;
    if (!group_.changed_.wait_until(lock, deadline_, is_over)) error_ = TimedOut();
    if (error_.ok() && group_.phase_ != Phase::kOpen) error_ = group_.FailureLocked();
    if (!error_.ok()) Abandon(lock);
    return error_;
  }

  Status Check() override {
    std::lock_guard<std::mutex> lock(group_.mutex_);
    if (error_.ok() && group_.phase_ != Phase::kOpen) error_ = group_.FailureLocked();
    if (error_.ok() && Clock::now() >= deadline_) error_ = TimedOut();
    return error_;
  }

  void WakeOnStop(std::function<void()> wake) override {
    std::lock_guard<std::mutex> lock(group_.mutex_);
    group_.wake_on_stop_ = std::move(wake);
    if (group_.phase_ != Phase::kOpen) group_.wake_on_stop_();
  }

  Status CheckPeer(int rank) override {
    std::lock_guard<std::mutex> lock(group_.mutex_);
    const auto found = group_.gone_.find(view_->members[rank].id);
    if (found == group_.gone_.end()) return Status::Ok();
    return Status(StatusCode::kPeerLost, DescribeLoss(*view_, {rank}, found->second));
  }

  LocalCollectives* local() override { return group_.local_.get(); }

  char* Scratch(size_t size_bytes) override {
    if (size_bytes > group_.scratch_size_bytes_) {
      const size_t rounded = (size_bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
      group_.scratch_.reset();
      group_.scratch_.reset(static_cast<char*>(std::aligned_alloc(kScratchAlignment, rounded)));
      group_.scratch_size_bytes_ = group_.scratch_ ? rounded : 0;
      if (!group_.scratch_) throw std::bad_alloc();
    }
    return group_.scratch_.get();
  }

  // After the body: whatever it left behind comes back before its tensors go.
  Status Conclude(Status status) {
    std::unique_lock<std::mutex> lock(group_.mutex_);
    group_.wake_on_stop_ = nullptr;
    if (!status.ok() && error_.ok()) error_ = std::move(status);
    if (error_.ok() && num_under_way_ > 0) {
      error_ = Status(StatusCode::kInternal, "an operation ended before its messages");
    }
    if (!error_.ok()) Abandon(lock);
    return error_;
  }

 private:
  struct Posted {
    int peer;
    bool is_done;
  };

  MessageAddress Address(uint32_t tag) const { return {group_.id_, view_->epoch, tag, sequence_}; }

  // -1 if nothing may be posted any more.
  int64_t Post(int peer) {
    std::lock_guard<std::mutex> lock(group_.mutex_);
    if (!error_.ok() || group_.phase_ != Phase::kOpen) return -1;
    posted_.push_back({peer, false});
    ++num_under_way_;
    return static_cast<int64_t>(posted_.size()) - 1;
  }

  void Finish(int64_t index, Status status) {
    std::lock_guard<std::mutex> lock(group_.mutex_);
    posted_[index].is_done = true;
    --num_under_way_;
    while (num_done_in_order_ < posted_.size() && posted_[num_done_in_order_].is_done) ++num_done_in_order_;
    if (!status.ok() && error_.ok() && group_.phase_ == Phase::kOpen) error_ = Named(index, status);
    if (!error_.ok() || num_under_way_ == 0 || num_done_in_order_ >= wanted_) group_.changed_.notify_all();
  }

  Status Named(int64_t index, const Status& status) const {
    const int peer = posted_[index].peer;
    if (status.code() != StatusCode::kPeerLost) return status.WithContext("rank " + std::to_string(peer));
    return Status(StatusCode::kPeerLost, DescribeLoss(*view_, {peer}, status.message()));
  }

  Status TimedOut() const {
    std::set<int> peers;
    for (const Posted& posted : posted_) {
      if (!posted.is_done) peers.insert(posted.peer);
    }
    return Status(StatusCode::kDeadlineExceeded, "rank " + std::to_string(rank_) + " waited longer than " +
                                                     Seconds(timeout_s_) + " for ranks " +
                                                     JoinRanks({peers.begin(), peers.end()}));
  }

  // The error is final: the group stops, and what is posted comes back.
  void Abandon(std::unique_lock<std::mutex>& lock) {
    const bool stopped_now = group_.StopLocked(Phase::kRevoked, error_.message());
    const Status why = error_;
    lock.unlock();
    if (stopped_now) group_.on_revoked_(group_, *view_, why.message());
    group_.messenger_.Cancel(group_.id_, view_->epoch, why);
    lock.lock();
    group_.changed_.wait(lock, [&] { return num_under_way_ == 0; });
  }

  QueuedGroup& group_;
  const std::shared_ptr<const View> view_;
  const int rank_;
  const uint64_t sequence_;
  const double timeout_s_;
  const Clock::time_point deadline_;

  // Guarded by the group's mutex.
  std::deque<Posted> posted_;
  size_t num_done_in_order_ = 0, num_under_way_ = 0, wanted_ = 0;
  Status error_;
};

QueuedGroup::QueuedGroup(Messenger& messenger, uint64_t id, std::string name, View view, OnRevoked on_revoked)
    : messenger_(messenger),
      self_(messenger.self().id),
      id_(id),
      name_(std::move(name)),
      on_revoked_(std::move(on_revoked)),
      view_(std::make_shared<const View>(std::move(view))),
      rank_(RankOf(*view_, self_)),
      scratch_(nullptr, &std::free),
      thread_("el-" + name_, [this] { WorkUntilClosed(); }) {}

QueuedGroup::~QueuedGroup() { Close(); }

std::shared_ptr<const View> QueuedGroup::view() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return view_;
}

int QueuedGroup::rank() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return rank_;
}

void QueuedGroup::ShareMemory(Neighbours* neighbours) {
  std::lock_guard<std::mutex> lock(mutex_);
  local_ = std::make_unique<LocalCollectives>(neighbours, id_);
}

void QueuedGroup::NoteGone(MemberId member, const std::string& why) {
  std::lock_guard<std::mutex> lock(mutex_);
  gone_.emplace(member, why);
}

std::string QueuedGroup::why_revoked() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return why_;
}

uint64_t QueuedGroup::sequence() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_queued_;
}

void QueuedGroup::Run(Body body, double timeout_s, Done done) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (phase_ == Phase::kOpen) {
    queue_.push_back({std::move(body), timeout_s, std::move(done), num_queued_++});
    changed_.notify_all();
    return;
  }
  const Status failure = FailureLocked();
  lock.unlock();
  done(failure);
}

void QueuedGroup::Revoke(const std::string& why) {
  RevokeSoon(why);
  std::unique_lock<std::mutex> lock(mutex_);
  WaitUntilSettled(lock);
}

void QueuedGroup::RevokeSoon(const std::string& why) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!StopLocked(Phase::kRevoked, why)) return;
  const std::shared_ptr<const View> view = view_;
  lock.unlock();
  on_revoked_(*this, *view, why);
}

void QueuedGroup::RevokeEpochSoon(uint32_t epoch, const std::string& why) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (epoch > view_->epoch && epoch > revoked_epoch_) {
    revoked_epoch_ = epoch;
    revoked_epoch_why_ = why;
  }
  if (epoch != view_->epoch || !StopLocked(Phase::kRevoked, why)) return;
  const std::shared_ptr<const View> view = view_;
  lock.unlock();
  on_revoked_(*this, *view, why);
}

Status QueuedGroup::Install(View view) {
  const int rank = RankOf(view, self_);
  if (rank < 0) {
    return Status(StatusCode::kInvalidArgument,
                  "this process is not in the view of epoch " + std::to_string(view.epoch));
  }
  std::unique_lock<std::mutex> lock(mutex_);
  if (view.epoch <= view_->epoch) {
    return Status(StatusCode::kInvalidArgument, "group " + name_ + " is in epoch " +
                                                    std::to_string(view_->epoch) + ": " +
                                                    std::to_string(view.epoch) + " is no newer one");
  }
  StopLocked(Phase::kRevoked, "the members of group " + name_ + " are being edited");
  WaitUntilSettled(lock);
  if (phase_ == Phase::kClosed) return FailureLocked();
  const bool is_revoked_already = revoked_epoch_ >= view.epoch;  // of a later one: this one is over as well
  view_ = std::make_shared<const View>(std::move(view));
  rank_ = rank;
  num_queued_ = 0;
  gone_.clear();
  ForgetPairsLocked();
  phase_ = Phase::kOpen;
  why_.clear();
  const auto early = std::move(early_pair_messages_);
  early_pair_messages_.clear();
  lock.unlock();
  for (const auto& [from, content] : early) OnPairMessage(from, content);
  if (is_revoked_already) RevokeSoon(revoked_epoch_why_);
  return Status::Ok();
}

void QueuedGroup::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    StopLocked(Phase::kClosed, "group " + name_ + " is closed");
  }
  thread_.Join();
}

bool QueuedGroup::StopLocked(Phase phase, const std::string& why) {
  if (phase_ == Phase::kClosed || phase_ == phase) return false;
  phase_ = phase;
  why_ = why;
  is_settled_ = false;
  changed_.notify_all();
  if (wake_on_stop_) wake_on_stop_();
  return true;
}

void QueuedGroup::WaitUntilSettled(std::unique_lock<std::mutex>& lock) {
  if (std::this_thread::get_id() == thread_id_) return;  // a `done` of ours: the thread settles after it
  changed_.wait(lock, [&] { return is_settled_; });
}

Status QueuedGroup::FailureLocked() const {
  if (phase_ == Phase::kOpen) return Status::Ok();
  return Status(phase_ == Phase::kClosed ? StatusCode::kCancelled : StatusCode::kRevoked, why_);
}

void QueuedGroup::WorkUntilClosed() {
  std::unique_lock<std::mutex> lock(mutex_);
  thread_id_ = std::this_thread::get_id();
  while (true) {
    changed_.wait(lock, [&] { return !is_settled_ || (phase_ == Phase::kOpen && !queue_.empty()); });
    if (!is_settled_) Settle(lock);
    if (phase_ == Phase::kClosed) break;
    if (phase_ == Phase::kOpen && !queue_.empty()) RunOne(lock);
  }
  local_.reset();  // the neighbours may go before the last one who holds this group
}

void QueuedGroup::RunOne(std::unique_lock<std::mutex>& lock) {
  Queued queued = std::move(queue_.front());
  queue_.pop_front();
  RunningOperation operation(*this, view_, queued.sequence, queued.timeout_s);
  lock.unlock();
  Status status;
  try {
    status = queued.body(operation);
  } catch (const std::exception& error) {
    status = Status(StatusCode::kInternal, std::string("an operation threw: ") + error.what());
  }
  queued.done(operation.Conclude(std::move(status)));
  queued = Queued();  // drops what the closures hold without the lock
  lock.lock();
}

void QueuedGroup::Settle(std::unique_lock<std::mutex>& lock) {
  const Status failure = FailureLocked();
  const uint32_t epoch = view_->epoch;
  std::deque<Queued> dropped = std::move(queue_);
  queue_.clear();
  std::deque<AnyReceive> unsent = std::move(any_receives_);
  any_receives_.clear();
  lock.unlock();
  messenger_.Cancel(id_, epoch, failure);
  for (Queued& queued : dropped) queued.done(failure);
  for (AnyReceive& receive : unsent) receive.done(failure, -1);
  dropped.clear();
  lock.lock();
  is_settled_ = phase_ != Phase::kClosed || failure.code() == StatusCode::kCancelled;
  if (is_settled_) changed_.notify_all();
}

}  // namespace elastates
