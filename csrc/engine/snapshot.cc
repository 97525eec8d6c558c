#include "engine/snapshot.h"

#include <atomic>
#include <chrono>
#include <utility>

namespace elastates {
namespace {

double NowS() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::atomic<uint64_t> num_snapshots{0};

}  // namespace

Snapshot::Snapshot(SnapshotPlan plan, WaiterListener on_waiter)
    : id_(num_snapshots.fetch_add(1, std::memory_order_relaxed) + 1),
      plan_(std::move(plan)),
      on_waiter_(std::move(on_waiter)),
      job_([this] {
        std::lock_guard<std::mutex> lock(mutex_);
        changed_.notify_all();
      }),
      crcs_(plan_.extent_ends.size()),
      contents_(plan_.content_key != nullptr ? plan_.extent_ends.size() : 0),
      extent_changed_(plan_.base != nullptr ? plan_.extent_ends.size() : 0, 1) {
  times_.submitted_s = NowS();
  CountGroups();
}

void Snapshot::CountGroups() {
  groups_.resize(plan_.num_groups);
  groups_left_ = groups_.size();
  for (const Segment& segment : plan_.segments) {
    if (segment.group < groups_.size()) groups_[segment.group].bytes_left += segment.size_bytes;
  }
  for (Group& group : groups_) {
    if (group.bytes_left == 0) MarkGroupCopiedLocked(&group);
  }
  if (groups_.empty()) times_.copied_s = times_.submitted_s;
}

Status Snapshot::WaitGroupCopied(uint32_t group, double timeout_s) {
  if (group >= plan_.num_groups) {
    return Status(
        StatusCode::kInvalidArgument,
        "group " + std::to_string(group) + " of a snapshot that has " + std::to_string(plan_.num_groups));
  }
  return WaitUrgently(timeout_s, [this, group] { return groups_[group].copied; });
}

Status Snapshot::WaitCopied(double timeout_s) {
  return WaitUrgently(timeout_s, [this] { return groups_left_ == 0; });
}

Status Snapshot::WatchCopied(double timeout_s) {
  return WaitUntil(timeout_s, [this] { return SourcesReleasedLocked(); });
}

void Snapshot::Hurry() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (is_hurried_ || SourcesReleasedLocked()) return;
    is_hurried_ = true;
  }
  if (on_waiter_) on_waiter_(+1);
}

// The inverse of Hurry(), once there is nothing left to hurry for. Idempotent.
void Snapshot::Relax() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!is_hurried_ || !SourcesReleasedLocked()) return;
    is_hurried_ = false;
  }
  if (on_waiter_) on_waiter_(-1);
}

Status Snapshot::WaitWritten(double timeout_s) {
  return WaitUntil(timeout_s, [this] { return finished_; });
}

// A failed snapshot is waited for too, until nobody reads its sources any more.
Status Snapshot::WaitUrgently(double timeout_s, const std::function<bool()>& reached) {
  auto reached_or_released = [&] { return SourcesReleasedLocked() || (!job_.failed() && reached()); };
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (reached_or_released())
      return job_.status();  // the common case costs the engine no switch of priorities
  }
  if (on_waiter_) on_waiter_(+1);
  Status status = WaitUntil(timeout_s, reached_or_released);
  if (on_waiter_) on_waiter_(-1);
  return status;
}

Status Snapshot::WaitUntil(double timeout_s, const std::function<bool()>& reached) {
  std::unique_lock<std::mutex> lock(mutex_);
  bool in_time = true;
  if (timeout_s < 0) {
    changed_.wait(lock, reached);
  } else {
    in_time = changed_.wait_for(lock, std::chrono::duration<double>(timeout_s), reached);
  }
  if (in_time) return job_.status();
  return Status(StatusCode::kDeadlineExceeded,
                "snapshot of " + plan_.path + ": still under way after " + std::to_string(timeout_s) + " s");
}

std::shared_ptr<const ExtentDigests> Snapshot::digests() const {
  if (plan_.content_key == nullptr) return nullptr;
  return std::make_shared<const ExtentDigests>(ExtentDigests{plan_.content_key, contents_, crcs_});
}

SnapshotTimes Snapshot::times() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return times_;
}

uint64_t Snapshot::uncopied_bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  uint64_t bytes = 0;
  for (const Group& group : groups_) bytes += group.bytes_left;
  return bytes;
}

bool Snapshot::sources_released() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return SourcesReleasedLocked();
}

bool Snapshot::finished() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return finished_;
}

std::shared_ptr<void> Snapshot::TakeOwner() {
  std::function<Status(uint32_t)> check;  // destroyed after the lock is gone
  std::lock_guard<std::mutex> lock(mutex_);
  if (!SourcesReleasedLocked()) return nullptr;
  check.swap(plan_.check_unchanged);
  return std::move(plan_.owner);
}

bool Snapshot::BeginCopy() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (job_.failed()) return false;
  ++active_copies_;
  return true;
}

void Snapshot::EndCopy() {
  std::lock_guard<std::mutex> lock(mutex_);
  --active_copies_;
  changed_.notify_all();
}

Status Snapshot::GroupBytesCopied(uint32_t group, uint64_t size_bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    groups_[group].bytes_left -= size_bytes;
    if (groups_[group].bytes_left > 0) return Status::Ok();
  }
  if (plan_.check_unchanged) {
    Status status = plan_.check_unchanged(group);
    if (!status.ok()) return status;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    MarkGroupCopiedLocked(&groups_[group]);
  }
  Relax();
  return Status::Ok();
}

void Snapshot::MarkGroupCopiedLocked(Group* group) {
  group->copied = true;
  if (--groups_left_ == 0) times_.copied_s = NowS();
  changed_.notify_all();
}

void Snapshot::MarkFinished() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ = true;
    if (!job_.failed()) times_.written_s = NowS();
    changed_.notify_all();
  }
  Relax();
}

}  // namespace elastates
