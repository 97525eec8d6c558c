// Neighbours: the processes of this host that share memory with this one.
//
// Nothing is kept of a peer that no board uses: whoever has left for good costs no mapping and no descriptor.
// Any thread may call any method.
#ifndef ELASTATES_COMM_SHARED_NEIGHBOURS_H_
#define ELASTATES_COMM_SHARED_NEIGHBOURS_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/status.h"
#include "comm/member.h"
#include "comm/shared/peer_segment.h"
#include "comm/shared/remote_memory.h"
#include "comm/shared/segment.h"
#include "comm/shared/vote_page.h"

namespace elastates {

struct Neighbour {
  std::unique_ptr<PeerSegment> segment;
  std::unique_ptr<RemoteMemory> memory;  // null where its private memory cannot be read
};

class Neighbours {
 public:
  // The descriptor of a peer's segment, which stays the callee's; -1: it has none, or there is no such peer.
  using SegmentFd = std::function<int(MemberId)>;

  // `own` outlives this.
  Neighbours(SharedSegment* own, SegmentFd segment_fd) : own_(own), segment_fd_(std::move(segment_fd)) {}

  SharedSegment* own() const { return own_; }

  // kInvalidArgument if it offers no memory, or what it offers is refused.
  Result<std::shared_ptr<Neighbour>> Find(MemberId peer);

  // What a peer voted last, also if it is dead by now.
  Result<std::string> VoteOf(MemberId peer);

 private:
  SharedSegment* const own_;
  const SegmentFd segment_fd_;
  std::mutex mutex_;
  std::map<MemberId, std::weak_ptr<Neighbour>> known_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_NEIGHBOURS_H_
