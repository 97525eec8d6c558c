#include "comm/links/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace elastates {
namespace {

#ifndef SO_PEERPIDFD
constexpr int kPeerPidfd = 77;
#else
constexpr int kPeerPidfd = SO_PEERPIDFD;
#endif

bool IsReadable(int fd) {
  pollfd poller{fd, POLLIN, 0};
  return poll(&poller, 1, 0) == 1 && (poller.revents & POLLIN) != 0;
}

bool IsHungUp(const Socket& socket) {
  pollfd poller{socket.get(), POLLIN | POLLRDHUP, 0};
  return poll(&poller, 1, 0) == 1 && (poller.revents & (POLLHUP | POLLRDHUP | POLLERR)) != 0;
}

}  // namespace

Result<OwnedFd> OpenPidfd(const Socket& socket, int pid) {
  int fd = -1;
  socklen_t size = sizeof(fd);
  if (getsockopt(socket.get(), SOL_SOCKET, kPeerPidfd, &fd, &size) == 0) return OwnedFd(fd);
  OwnedFd opened(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!opened) return Status::FromErrno(errno, "opening a pidfd of process " + std::to_string(pid));
  if (IsHungUp(socket)) return Status(StatusCode::kPeerLost, "process " + std::to_string(pid) + " has left");
  return opened;
}

bool HasEnded(int pidfd) { return IsReadable(pidfd); }

bool Exists(int pid) { return kill(pid, 0) == 0 || errno != ESRCH; }

Status KillThrough(int pidfd) {
  if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0) == 0 || errno == ESRCH) return Status::Ok();
  return Status::FromErrno(errno, "sending SIGKILL through a pidfd");
}

}  // namespace elastates
