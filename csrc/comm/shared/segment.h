// SharedSegment: the memory in which this process shows the others of its host how far it has come.
//
// A memfd that only this process maps writable; peers get a descriptor that is open for reading alone, and
// the kernel refuses new writable mappings (F_SEAL_FUTURE_WRITE) where it can. Lives as long as the last
// process that maps it: what a dead owner wrote stays readable. Slots are opened and closed from any thread;
// an open slot belongs to the thread that runs its group's operations.
#ifndef ELASTATES_COMM_SHARED_SEGMENT_H_
#define ELASTATES_COMM_SHARED_SEGMENT_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "base/status.h"
#include "comm/member.h"
#include "comm/shared/layout.h"
#include "storage/owned_fd.h"

namespace elastates {

class SharedSegment {
 public:
  static Result<std::unique_ptr<SharedSegment>> Create(MemberId self);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  // For the peers; read-only. The segment keeps it.
  int fd() const { return fd_.get(); }

  // A slot for one epoch of a group, its counter and the begin of its window of step 0 at zero.
  // kResourceExhausted if all are taken.
  Result<size_t> OpenSlot(uint64_t group, uint32_t epoch);
  // Everybody who waits for this slot learns that no more arrivals come. It is used again last of all.
  void CloseSlot(size_t slot);

  // Has those look again who wait for something in the window of step 0.
  void AnnounceGreeting();

  // An operation has failed here: from now on the memory that it pointed to may be used for something else.
  void GiveUp(size_t slot);
  // One more arrival, after everything that was written to the window before.
  void Arrive(size_t slot);
  char* window(size_t slot, uint32_t step) const {
    return base_ + WindowOffset(slot) + (step % 2) * kWindowBytes;
  }

  VoteArea* votes() const { return reinterpret_cast<VoteArea*>(base_ + kVotesOffset); }
  const ControlPage& control() const { return *reinterpret_cast<const ControlPage*>(base_); }

 private:
  SharedSegment(OwnedFd fd, char* base, MemberId self);

  ControlPage* page() { return reinterpret_cast<ControlPage*>(base_); }
  void DirectoryChanged();

  const OwnedFd fd_;
  char* const base_;
  const std::unique_ptr<const uint64_t> probe_value_;  // in private memory: what peers try to read

  std::mutex mutex_;
  std::deque<size_t> free_slots_;  // first in, first out, so that a closed slot's last count stays long
  uint32_t num_openings_ = 0;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_SEGMENT_H_
