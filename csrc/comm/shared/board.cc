#include "comm/shared/board.h"

#include <string>
#include <utility>

namespace elastates {
namespace {

// Bounds how late an operation's time-out is noticed; everything else wakes a sleeper.
constexpr auto kCheckInterval = std::chrono::milliseconds(50);

}  // namespace

Result<std::unique_ptr<Board>> Board::Open(SharedSegment* own, std::vector<PeerSegment*> peers, int rank,
                                           uint64_t group, uint32_t epoch, bool reads_all) {
  if (peers.size() > kMaxLocalMembers) {
    return Status(StatusCode::kInvalidArgument, std::to_string(peers.size()) +
                                                    " members on one host; at most " +
                                                    std::to_string(kMaxLocalMembers) + " can share memory");
  }
  Result<size_t> slot = own->OpenSlot(group, epoch);
  if (!slot.ok()) return slot.status();
  return std::unique_ptr<Board>(
      new Board(own, std::move(peers), rank, group, epoch, reads_all, slot.value()));
}

Board::Board(SharedSegment* own, std::vector<PeerSegment*> peers, int rank, uint64_t group, uint32_t epoch,
             bool reads_all, size_t slot)
    : own_(own),
      peers_(std::move(peers)),
      rank_(rank),
      group_(group),
      epoch_(epoch),
      reads_all_(reads_all),
      slot_(slot),
      seats_(peers_.size()) {}

Board::~Board() { own_->CloseSlot(slot_); }

// Both sides must mean the same opening of their slots: a peer's slot that is still open may be left from a
// group of the same name that this process has closed already. So each writes into the window of step 0 which
// opening it has found (0: none), and is bound to who has found its own.
Status Board::Bind(const KeepWaiting& check) {
  for (int other = 0; other < size(); ++other) {
    while (other != rank_ && !seats_[other].bound) {
      const std::atomic<uint32_t>& directory = peers_[other]->control().directory;
      const uint32_t seen = directory.load();
      Result<bool> bound = TryBind(other);
      if (!bound.ok()) return bound.status();
      if (bound.value()) break;
      Status slept = Sleep(other, FutexWord(directory), seen, check);
      if (slept.code() == StatusCode::kPeerLost && directory.load() != seen) continue;  // it had come before
      if (slept.code() == StatusCode::kDeadlineExceeded)
        return slept.WithContext("waiting for " + Name(other));
      if (!slept.ok()) return slept;
    }
  }
  Status interrupted = interruption();
  is_bound_ = interrupted.ok();
  all_read_ = reads_all_;
  for (int other = 0; other < size(); ++other) all_read_ &= other == rank_ || seats_[other].reads_all;
  return interrupted;
}

Result<bool> Board::TryBind(int rank) {
  Result<std::optional<PeerSegment::Opening>> found = peers_[rank]->Find(group_, epoch_);
  if (!found.ok()) return found.status();
  if (!found.value()) return false;
  Result<const char*> windows = peers_[rank]->Windows(found.value()->slot);
  if (!windows.ok()) return windows.status();
  Seat& seat = seats_[rank];
  seat.opening = *found.value();
  seat.windows = windows.value();
  const uint32_t greeting = seat.opening.number << 1 | (reads_all_ ? 1 : 0);
  if (GreetingTo(rank)->exchange(greeting) != greeting) own_->AnnounceGreeting();
  const uint32_t answer = GreetingFrom(rank);
  seat.bound = answer >> 1 == own_opening();
  seat.reads_all = (answer & 1) != 0;
  return seat.bound;
}

std::atomic<uint32_t>* Board::GreetingTo(int rank) const {
  return reinterpret_cast<std::atomic<uint32_t>*>(own_->window(slot_, 0)) + rank;
}

uint32_t Board::GreetingFrom(int rank) const {
  return (reinterpret_cast<const std::atomic<uint32_t>*>(seats_[rank].windows) + rank_)->load();
}

uint32_t Board::own_opening() const {
  return Progress::Of(own_->control().slots[slot_].progress.load()).opening;
}

void Board::Arrive() {
  ++step_;
  own_->Arrive(slot_);
}

Status Board::WaitFor(int rank, const KeepWaiting& check) {
  if (rank == rank_) return interruption();
  const std::atomic<uint64_t>& word = ProgressOf(rank);
  while (true) {
    const uint64_t seen = word.load(std::memory_order_acquire);
    const Progress progress = Progress::Of(seen);
    if (progress.opening == seats_[rank].opening.number && progress.Reached(step_)) return interruption();
    if (progress.closed || progress.opening != seats_[rank].opening.number) return Left(rank);
    Status slept = Sleep(rank, LowHalf(word), static_cast<uint32_t>(seen), check);
    if (slept.code() == StatusCode::kPeerLost && word.load() != seen) continue;  // it had come before
    if (slept.code() == StatusCode::kDeadlineExceeded) return slept.WithContext("waiting for " + Name(rank));
    if (!slept.ok()) return slept;
  }
}

// Until the word has changed, or for no reason.
Status Board::Sleep(int rank, const uint32_t* word, uint32_t seen, const KeepWaiting& check) {
  Status status = interruption();
  if (status.ok()) status = check(rank);
  if (status.ok()) FutexWait(word, seen, stop_, WaitClock::now() + kCheckInterval);
  return status;
}

Status Board::WaitForAll(const KeepWaiting& check) {
  for (int other = 0; other < size(); ++other) {
    Status met = WaitFor(other, check);
    if (!met.ok()) return met;
  }
  return Status::Ok();
}

Status Board::Meet(const KeepWaiting& check) {
  Arrive();
  return WaitForAll(check);
}

const char* Board::window_of(int rank) const {
  if (rank == rank_) return own_->window(slot_, step_);
  return seats_[rank].windows + (step_ % 2) * kWindowBytes;
}

// A closed slot keeps what it showed until it is opened anew.
Status Board::Confirm(int rank) const {
  if (stop_.load(std::memory_order_relaxed) != 0) return interruption();
  if (rank == rank_) return Status::Ok();
  OrderFence();
  if (ProgressOf(rank).load(std::memory_order_relaxed) >> 32 == seats_[rank].opening.number) {
    return Status::Ok();
  }
  return Left(rank);
}

Status Board::ConfirmMemory(int rank, const KeepWaiting& check) {
  Status status = Confirm(rank);
  const bool has_failed = EntryOf(rank).given_up.load() == seats_[rank].opening.number;
  return status.ok() && has_failed ? AwaitReason(rank, check) : status;
}

Status Board::AwaitReason(int rank, const KeepWaiting& check) {
  const std::atomic<uint64_t>& word = ProgressOf(rank);
  while (true) {
    Status reason = Sleep(rank, LowHalf(word), static_cast<uint32_t>(word.load()), check);
    if (!reason.ok()) return reason;
  }
}

void Board::Interrupt(Status why) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!interruption_.ok()) return;
    interruption_ = std::move(why);
  }
  FutexStop(&stop_);
}

Status Board::interruption() const {
  if (stop_.load(std::memory_order_acquire) == 0) return Status::Ok();
  std::lock_guard<std::mutex> lock(mutex_);
  return interruption_;
}

const SlotEntry& Board::EntryOf(int rank) const {
  return peers_[rank]->control().slots[seats_[rank].opening.slot];
}

Status Board::Left(int rank) const {
  return Status(StatusCode::kRevoked, Name(rank) + " has left epoch " + std::to_string(epoch_));
}

std::string Board::Name(int rank) const {
  return "rank " + std::to_string(rank) + " (process " + std::to_string(peers_[rank]->control().pid) + ")";
}

}  // namespace elastates
