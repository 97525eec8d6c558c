// PeerSegment: the segment of another process, mapped read-only and believed nothing.
//
// The control page and the votes are mapped for as long as this lives; the windows of a slot when they are
// first asked for. What a dead owner wrote stays readable. Any thread may call any method.
#ifndef ELASTATES_COMM_SHARED_PEER_SEGMENT_H_
#define ELASTATES_COMM_SHARED_PEER_SEGMENT_H_

#include <array>
#include <memory>
#include <mutex>
#include <optional>

#include "base/status.h"
#include "comm/member.h"
#include "comm/shared/layout.h"
#include "storage/owned_fd.h"

namespace elastates {

class PeerSegment {
 public:
  // `fd` came from the peer and stays the caller's. kInvalidArgument if it is not a segment of this layout,
  // could be cut short, or belongs to somebody else.
  static Result<std::unique_ptr<PeerSegment>> Map(int fd, MemberId expected);
  ~PeerSegment();
  PeerSegment(const PeerSegment&) = delete;
  PeerSegment& operator=(const PeerSegment&) = delete;

  MemberId member() const { return member_; }
  const ControlPage& control() const { return *reinterpret_cast<const ControlPage*>(base_); }
  const VoteArea& votes() const { return *reinterpret_cast<const VoteArea*>(base_ + kVotesOffset); }

  // Where the peer has opened this epoch of the group, if it has. kRevoked if it is at a newer one.
  struct Opening {
    size_t slot;
    uint32_t number;
  };
  Result<std::optional<Opening>> Find(uint64_t group, uint32_t epoch) const;

  // Both windows of a slot, one behind the other.
  Result<const char*> Windows(size_t slot);

 private:
  PeerSegment(OwnedFd fd, const char* base, MemberId member)
      : fd_(std::move(fd)), base_(base), member_(member) {}

  const OwnedFd fd_;
  const char* const base_;
  const MemberId member_;
  std::mutex mutex_;
  std::array<const char*, kNumSlots> windows_{};
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_PEER_SEGMENT_H_
