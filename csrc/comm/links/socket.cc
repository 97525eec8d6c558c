#include "comm/links/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "comm/links/fork_guard.h"

namespace elastates {
namespace {

constexpr int kBacklog = 512;
constexpr int kFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr int kLocalBufferBytes = 1 << 20;

#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44  // Linux 6.15
#endif

struct Address {
  sockaddr_storage storage{};
  socklen_t size = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

Status BadAddress(const std::string& text, const char* expected) {
  return Status(StatusCode::kInvalidArgument, "\"" + text + "\" is not an address: expected " + expected);
}

bool FillInet(const std::string& host, uint16_t port, Address* address) {
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address->storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address->storage);
  if (inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address->size = sizeof(*v4);
    return true;
  }
  if (inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) != 1) return false;
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons(port);
  address->size = sizeof(*v6);
  return true;
}

// "1.2.3.4", "1.2.3.4:5", "::1", "[::1]:5"
Result<Address> ParseInet(const std::string& text) {
  std::string host = text, port = "0";
  const size_t colon = text.rfind(':');
  if (!text.empty() && text.front() == '[') {
    const size_t end = text.find("]:");
    if (end == std::string::npos) return BadAddress(text, "\"[IPv6 address]:port\"");
    host = text.substr(1, end - 1);
    port = text.substr(end + 2);
  } else if (colon != std::string::npos && text.find(':') == colon) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  char* end = nullptr;
  const unsigned long number = std::strtoul(port.c_str(), &end, 10);
  Address address;
  if (port.empty() || *end != '\0' || number > 65535 ||
      !FillInet(host, static_cast<uint16_t>(number), &address))
    return BadAddress(text, "a numeric IPv4 or IPv6 address, with or without a port");
  return address;
}

Result<Address> AbstractAddress(const std::string& name) {
  Address address;
  auto* local = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (name.empty() || name.size() > sizeof(local->sun_path) - 1)
    return BadAddress(name, "a name of 1 to 107 bytes for a local socket");
  local->sun_family = AF_UNIX;
  std::memcpy(local->sun_path + 1, name.data(), name.size());
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

Result<Socket> MakeSocket(const Address& address) {
  Socket socket(::socket(address.storage.ss_family, kFlags, 0));
  if (!socket) return Status::FromErrno(errno, "making a socket");
  return socket;
}

Result<Socket> Listen(const Address& address, const std::string& shown) {
  Result<Socket> made = MakeSocket(address);
  if (!made.ok()) return made.status();
  if (bind(made.value().get(), address.get(), address.size) != 0)
    return Status::FromErrno(errno, "binding to " + shown);
  if (listen(made.value().get(), kBacklog) != 0) return Status::FromErrno(errno, "listening on " + shown);
  return made;
}

Result<Socket> Dial(const Address& address, const std::string& shown) {
  Result<Socket> made = MakeSocket(address);
  if (!made.ok()) return made.status();
  if (connect(made.value().get(), address.get(), address.size) != 0 && errno != EINPROGRESS)
    return Status::FromErrno(errno, "connecting to " + shown);
  return made;
}

std::string HostText(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof(text));
  } else {
    inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text, sizeof(text));
  }
  return text;
}

std::string InetText(const Address& address) {
  const bool v6 = address.storage.ss_family == AF_INET6;
  const uint16_t port = ntohs(v6 ? reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_port
                                 : reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_port);
  const std::string host = HostText(address.get());
  return (v6 ? "[" + host + "]:" : host + ":") + std::to_string(port);
}

// Link-local addresses need a scope that means nothing elsewhere.
bool IsUsable(const ifaddrs& entry) {
  if (entry.ifa_addr == nullptr || (entry.ifa_flags & IFF_UP) == 0) return false;
  if (entry.ifa_addr->sa_family == AF_INET) return true;
  return entry.ifa_addr->sa_family == AF_INET6 &&
         !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(entry.ifa_addr)->sin6_addr);
}

int SetOption(const Socket& socket, int level, int option, int value) {
  return setsockopt(socket.get(), level, option, &value, sizeof(value)) == 0 ? 0 : -errno;
}

}  // namespace

Socket::Socket(int fd) : fd_(fd) {
  if (fd >= 0) fork_guard::Add(fd);
}

void Socket::Close() {
  if (!fd_) return;
  shutdown(fd_.get(), SHUT_RDWR);
  fork_guard::Remove(fd_.get());
  OwnedFd closing = std::move(fd_);
}

Result<Socket> ListenTcp(const std::string& address) {
  Result<Address> parsed = ParseInet(address);
  if (!parsed.ok()) return parsed.status();
  return Listen(parsed.value(), address);
}

Result<Socket> DialTcp(const std::string& address) {
  Result<Address> parsed = ParseInet(address);
  if (!parsed.ok()) return parsed.status();
  return Dial(parsed.value(), address);
}

Result<std::string> LocalAddress(const Socket& socket) {
  Address address;
  address.size = sizeof(address.storage);
  if (getsockname(socket.get(), address.get(), &address.size) != 0)
    return Status::FromErrno(errno, "reading the address of a socket");
  return InetText(address);
}

std::vector<std::string> AddressesOfThisMachine() {
  ifaddrs* list = nullptr;
  std::vector<std::string> outer, loopback;
  if (getifaddrs(&list) != 0) return {"127.0.0.1"};
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (!IsUsable(*entry)) continue;
    ((entry->ifa_flags & IFF_LOOPBACK) ? loopback : outer).push_back(HostText(entry->ifa_addr));
  }
  freeifaddrs(list);
  return outer.empty() ? loopback : outer;
}

Result<Socket> ListenLocal(const std::string& name) {
  Result<Address> address = AbstractAddress(name);
  if (!address.ok()) return address.status();
  return Listen(address.value(), name);
}

Result<Socket> DialLocal(const std::string& name) {
  Result<Address> address = AbstractAddress(name);
  if (!address.ok()) return address.status();
  return Dial(address.value(), name);
}

int Accept(const Socket& listener) {
  const int fd = accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return fd >= 0 ? fd : -errno;
}

int ConnectionError(const Socket& socket) {
  int error = 0;
  socklen_t size = sizeof(error);
  return getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

Result<Credentials> PeerCredentials(const Socket& socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return Status::FromErrno(errno, "reading who is at the other end of a local socket");
  return Credentials{credentials.pid, credentials.uid};
}

std::string PeerName(const Socket& socket) {
  Address address;
  address.size = sizeof(address.storage);
  if (getpeername(socket.get(), address.get(), &address.size) != 0) return "somebody who has left";
  if (address.storage.ss_family != AF_UNIX) return InetText(address);
  Result<Credentials> credentials = PeerCredentials(socket);
  return credentials.ok() ? "process " + std::to_string(credentials.value().pid) : "a process of this host";
}

// Half of the time goes by before the kernel begins to ask an idle peer, the rest is for its answers.
Status TuneTcp(const Socket& socket, double failure_timeout_s) {
  const int idle_s = std::max(1, static_cast<int>(failure_timeout_s / 2));
  const int between_s = std::max(1, static_cast<int>(failure_timeout_s / 8));
  const int timeout_ms = std::max(1000, static_cast<int>(failure_timeout_s * 1e3));
  int result = SetOption(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  if (result == 0) result = SetOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  if (result == 0) result = SetOption(socket, IPPROTO_TCP, TCP_KEEPIDLE, idle_s);
  if (result == 0) result = SetOption(socket, IPPROTO_TCP, TCP_KEEPINTVL, between_s);
  if (result == 0) result = SetOption(socket, IPPROTO_TCP, TCP_KEEPCNT, 4);
  if (result == 0) result = SetOption(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms);
  // Else what was sent before a cable was cut for half of the time is asked for again when all of it is over.
  // Older kernels do not know it.
  SetOption(socket, IPPROTO_TCP, TCP_RTO_MAX_MS, std::max(1000, timeout_ms / 8));
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "setting options of a TCP socket");
}

// As far as the system's limit allows; smaller buffers cost speed and nothing else.
void TuneLocal(const Socket& socket) { SetOption(socket, SOL_SOCKET, SO_SNDBUF, kLocalBufferBytes); }

ssize_t Send(const Socket& socket, const iovec* parts, size_t num_parts) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);
  message.msg_iovlen = num_parts;
  const ssize_t sent = sendmsg(socket.get(), &message, MSG_NOSIGNAL);
  return sent >= 0 ? sent : -errno;
}

ssize_t Receive(const Socket& socket, iovec* parts, size_t num_parts) {
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = num_parts;
  const ssize_t received = recvmsg(socket.get(), &message, 0);
  return received >= 0 ? received : -errno;
}

ssize_t SendWithFd(const Socket& socket, const std::string& bytes, int fd) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  if (fd < 0) return Send(socket, &part, 1);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  const ssize_t sent = sendmsg(socket.get(), &message, MSG_NOSIGNAL);
  return sent >= 0 ? sent : -errno;
}

ssize_t ReceiveWithFd(const Socket& socket, void* data, size_t size_bytes, OwnedFd* fd) {
  iovec part{data, size_bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  if (received < 0) return -errno;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t num_fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < num_fds; ++i) {
      int passed = -1;
      std::memcpy(&passed, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      *fd = OwnedFd(passed);  // the one before it is closed
    }
  }
  return received;
}

}  // namespace elastates
