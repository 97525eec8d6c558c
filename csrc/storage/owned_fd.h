// OwnedFd: a file descriptor with one owner, closed when that owner dies.
#ifndef ELASTATES_STORAGE_OWNED_FD_H_
#define ELASTATES_STORAGE_OWNED_FD_H_

#include <utility>

namespace elastates {

class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.Release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnedFd();  // errors of close() are lost here: whoever needs them closes what Release() returns

  explicit operator bool() const { return fd_ >= 0; }
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace elastates

#endif  // ELASTATES_STORAGE_OWNED_FD_H_
