// Sockets: a descriptor that forked children do not keep open, and the calls that links make on it.
//
// All are non-blocking and close-on-exec. Calls return what the system call returns, with errors as -errno.
#ifndef ELASTATES_COMM_LINKS_SOCKET_H_
#define ELASTATES_COMM_LINKS_SOCKET_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "storage/owned_fd.h"

namespace elastates {

// Owns a socket. A forked child (a data loader's worker) closes its copy at once: else the peers of a process
// that dies would see its links live on for as long as its children do.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd);
  Socket(Socket&& other) noexcept : fd_(std::move(other.fd_)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() { Close(); }

  // Tells the peer first, whoever else holds a copy. Idempotent.
  void Close();

  explicit operator bool() const { return static_cast<bool>(fd_); }
  int get() const { return fd_.get(); }

 private:
  OwnedFd fd_;
};

struct Credentials {
  int pid = 0;
  unsigned uid = 0;
};

// `address`: "10.0.0.7:4711", "[fe80::1]:4711". A numeric address alone: port 0.
Result<Socket> ListenTcp(const std::string& address);
Result<Socket> DialTcp(const std::string& address);  // returns before it is connected
Result<std::string> LocalAddress(const Socket& socket);
// The machine's own numeric addresses but loopback's; that too where there is no other.
std::vector<std::string> AddressesOfThisMachine();

// Abstract names: of the network namespace, gone with the socket.
Result<Socket> ListenLocal(const std::string& name);
Result<Socket> DialLocal(const std::string& name);

// -EAGAIN when nobody waits.
int Accept(const Socket& listener);
int ConnectionError(const Socket& socket);  // 0, or the errno of a connect that has ended
Result<Credentials> PeerCredentials(const Socket& socket);
std::string PeerName(const Socket& socket);  // for messages: "10.0.0.7:4711", "process 123"

// How a TCP link behaves: no delay, and broken once nothing was acknowledged for so long.
Status TuneTcp(const Socket& socket, double failure_timeout_s);
void TuneLocal(const Socket& socket);

ssize_t Send(const Socket& socket, const iovec* parts, size_t num_parts);
ssize_t Receive(const Socket& socket, iovec* parts, size_t num_parts);  // 0: the peer has closed
// With a descriptor beside the bytes; -1: without.
ssize_t SendWithFd(const Socket& socket, const std::string& bytes, int fd);
// What does not fit into `fd` is closed.
ssize_t ReceiveWithFd(const Socket& socket, void* data, size_t size_bytes, OwnedFd* fd);

}  // namespace elastates

#endif  // ELASTATES_COMM_LINKS_SOCKET_H_
