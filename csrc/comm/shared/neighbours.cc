#include "comm/shared/neighbours.h"

#include <utility>

namespace elastates {
namespace {

Result<std::shared_ptr<Neighbour>> Meet(MemberId peer, int fd) {
  if (fd < 0) {
    return Status(StatusCode::kInvalidArgument,
                  "member " + std::to_string(peer) +
                      " offers no shared memory to this process (ELASWAVE_NO_SHARED_MEMORY must be "
                      "set on all ranks of the job or on none)");
  }
  Result<std::unique_ptr<PeerSegment>> segment = PeerSegment::Map(fd, peer);
  if (!segment.ok()) return segment.status();
  auto neighbour = std::make_shared<Neighbour>();
  neighbour->segment = std::move(segment).value();
  Result<std::unique_ptr<RemoteMemory>> memory = RemoteMemory::Probe(neighbour->segment->control());
  if (memory.ok()) neighbour->memory = std::move(memory).value();
  return neighbour;
}

}  // namespace

Result<std::shared_ptr<Neighbour>> Neighbours::Find(MemberId peer) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (std::shared_ptr<Neighbour> known = known_[peer].lock()) return known;
  Result<std::shared_ptr<Neighbour>> met = Meet(peer, segment_fd_(peer));
  if (met.ok()) {
    known_[peer] = met.value();
  } else {
    known_.erase(peer);
  }
  return met;
}

Result<std::string> Neighbours::VoteOf(MemberId peer) {
  if (peer == own_->control().member) return ReadVote(*own_->votes());
  Result<std::shared_ptr<Neighbour>> neighbour = Find(peer);
  if (!neighbour.ok()) return neighbour.status();
  return ReadVote(neighbour.value()->segment->votes());
}

}  // namespace elastates
