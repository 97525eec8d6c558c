// Board: how the members of a group that share a host see how far each of them has come.
//
// An operation is a number of steps, the same on all members. In each step a member writes its window,
// arrives, and waits for every other member to arrive; then it reads their windows and what they point to.
// Windows alternate: what is shown at one step may be written over at the next but one, since everybody has
// read it by then. A board belongs to one epoch of one group. One thread at a time runs steps; Interrupt()
// comes from any thread.
#ifndef ELASTATES_COMM_SHARED_BOARD_H_
#define ELASTATES_COMM_SHARED_BOARD_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/status.h"
#include "comm/shared/futex.h"
#include "comm/shared/peer_segment.h"
#include "comm/shared/segment.h"

namespace elastates {

// Asked now and then while a rank is waited for; an error ends the waiting. So does Board::Interrupt(), at
// once.
using KeepWaiting = std::function<Status(int rank)>;

class Board {
 public:
  // `peers` by rank, null at `rank`, which is this process; all outlive the board. `reads_all` tells the
  // others that this process can read their private memory. kResourceExhausted if this process is in too many
  // groups.
  static Result<std::unique_ptr<Board>> Open(SharedSegment* own, std::vector<PeerSegment*> peers, int rank,
                                             uint64_t group, uint32_t epoch, bool reads_all = false);
  ~Board();  // the peers that wait for this process get kRevoked
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(peers_.size()); }

  // Until all members have opened their boards for this epoch. Needed once, before the first step.
  Status Bind(const KeepWaiting& check);
  bool is_bound() const { return is_bound_; }
  // Whether every member can read the private memory of every other; the same on all. REQUIRES: is_bound().
  bool all_read() const { return all_read_; }

  // What this process shows at its next arrival: kWindowBytes.
  char* window() const { return own_->window(slot_, step_ + 1); }
  void Arrive();

  // Until a member, or all, have arrived at our step. kRevoked if it has left the epoch; or what Interrupt()
  // or `check` said.
  Status WaitFor(int rank, const KeepWaiting& check);
  Status WaitForAll(const KeepWaiting& check);
  // Arrive() and WaitForAll().
  Status Meet(const KeepWaiting& check);

  // What a member showed at our step: kWindowBytes, changing under our eyes if the member is wrong. REQUIRES:
  // WaitFor(rank) was ok.
  const char* window_of(int rank) const;

  // To be asked after anything was read of a member's windows, before it is believed: kRevoked if that member
  // has gone on to something else meanwhile; or what Interrupt() said.
  Status Confirm(int rank) const;
  // The same of its tensors. A member that fails gives its tensors back while others may still be reading
  // them, even if it had arrived at our step and the next one: that ends our operation as well, for the
  // reason that we wait for here. One that has succeeded had met us at a later step.
  Status ConfirmMemory(int rank, const KeepWaiting& check);
  // What ends our operation because of a member is known here before the news of it have come: they say why.
  Status AwaitReason(int rank, const KeepWaiting& check);
  // Our operation has failed: to be told before its tensors are given back.
  void GiveUp() { own_->GiveUp(slot_); }

  // Ends what waits here and everything after with this error. The first one stays.
  void Interrupt(Status why);
  Status interruption() const;

 private:
  struct Seat {
    PeerSegment::Opening opening{0, 0};
    const char* windows = nullptr;
    bool bound = false, reads_all = false;
  };

  Board(SharedSegment* own, std::vector<PeerSegment*> peers, int rank, uint64_t group, uint32_t epoch,
        bool reads_all, size_t slot);

  Result<bool> TryBind(int rank);
  Status Sleep(int rank, const uint32_t* word, uint32_t seen, const KeepWaiting& check);
  const SlotEntry& EntryOf(int rank) const;
  const std::atomic<uint64_t>& ProgressOf(int rank) const { return EntryOf(rank).progress; }
  Status Left(int rank) const;
  std::string Name(int rank) const;
  // The opening that was found, and whether the finder reads all, in the lowest bit.
  std::atomic<uint32_t>* GreetingTo(int rank) const;
  uint32_t GreetingFrom(int rank) const;
  uint32_t own_opening() const;

  SharedSegment* const own_;
  const std::vector<PeerSegment*> peers_;
  const int rank_;
  const uint64_t group_;
  const uint32_t epoch_;
  const bool reads_all_;
  const size_t slot_;
  uint32_t step_ = 0;
  bool is_bound_ = false, all_read_ = false;
  std::vector<Seat> seats_;

  std::atomic<uint32_t> stop_{0};
  mutable std::mutex mutex_;
  Status interruption_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_BOARD_H_
