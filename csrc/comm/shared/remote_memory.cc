#include "comm/shared/remote_memory.h"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>

namespace elastates {
namespace {

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434  // the same number on all architectures
#endif

// A process that was killed loses its memory (ESRCH, for the out-of-memory killer EFAULT) before its pidfd
// tells: by how long at most, if not much memory has to be given back.
constexpr int kDyingMs = 1000;

bool IsForbidden() {
  const char* text = std::getenv("ELASWAVE_NO_REMOTE_READS");
  return text != nullptr && *text != '\0' && std::string(text) != "0";
}

Status Unreadable(int pid, const std::string& why) {
  return Status(StatusCode::kIoError, "memory of process " + std::to_string(pid) + " is not read: " + why);
}

}  // namespace

Result<std::unique_ptr<RemoteMemory>> RemoteMemory::Probe(const ControlPage& peer) {
  const int pid = static_cast<int>(peer.pid);
  if (IsForbidden()) return Unreadable(pid, "ELASWAVE_NO_REMOTE_READS is set");
  OwnedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return Status::FromErrno(errno, "pidfd_open of process " + std::to_string(pid));
  std::unique_ptr<RemoteMemory> memory(new RemoteMemory(pid, std::move(pidfd)));
  uint64_t value = 0;
  Status read = memory->Read(peer.probe_address, &value, sizeof(value));
  if (!read.ok()) return read;
  if (value != peer.probe_value) return Unreadable(pid, "it is not the process that was linked");
  return memory;
}

Status RemoteMemory::Read(uint64_t address, void* to, size_t size_bytes) const {
  char* next = static_cast<char*>(to);
  while (size_bytes > 0) {
    iovec local{next, size_bytes};
    iovec remote{reinterpret_cast<void*>(address), size_bytes};
    const ssize_t num_read = process_vm_readv(pid_, &local, 1, &remote, 1, 0);
    if (num_read < 0 && errno == EINTR) continue;
    if (num_read <= 0) {
      const int error = num_read < 0 ? errno : EFAULT;
      if (error == ESRCH || EndsWithin(kDyingMs)) return Lost();
      return Status::FromErrno(error, "read memory of process " + std::to_string(pid_));
    }
    next += num_read;
    address += static_cast<uint64_t>(num_read);
    size_bytes -= static_cast<size_t>(num_read);
  }
  return EndsWithin(0) ? Lost() : Status::Ok();
}

// A pidfd becomes readable when the process has ended.
bool RemoteMemory::EndsWithin(int timeout_ms) const {
  pollfd ended{pidfd_.get(), POLLIN, 0};
  return poll(&ended, 1, timeout_ms) != 0;
}

Status RemoteMemory::Lost() const {
  return Status(StatusCode::kPeerLost, "process " + std::to_string(pid_) + " ended while it was read");
}

}  // namespace elastates
