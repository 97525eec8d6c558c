// RemoteMemory: reading the private memory of another process of this host, without its help.
//
// Whether the kernel allows it depends on users, Yama and containers, so a link tries it once on a value that
// it knows. A read is worth nothing if the process had ended: its number may be another's by then. So every
// read is followed by a look whether the process still lives. Any thread may call any method.
#ifndef ELASTATES_COMM_SHARED_REMOTE_MEMORY_H_
#define ELASTATES_COMM_SHARED_REMOTE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "comm/shared/peer_segment.h"
#include "storage/owned_fd.h"

namespace elastates {

class RemoteMemory {
 public:
  // The error says why memory of this peer cannot be read; ELASWAVE_NO_REMOTE_READS=1 is one reason.
  static Result<std::unique_ptr<RemoteMemory>> Probe(const ControlPage& peer);

  // kPeerLost if the peer has ended, kIoError if it has nothing (any more) at this address; then `to` may
  // hold anything.
  Status Read(uint64_t address, void* to, size_t size_bytes) const;

 private:
  RemoteMemory(int pid, OwnedFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}

  bool EndsWithin(int timeout_ms) const;
  Status Lost() const;

  const int pid_;
  const OwnedFd pidfd_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_SHARED_REMOTE_MEMORY_H_
