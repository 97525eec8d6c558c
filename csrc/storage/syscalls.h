// Every system call that touches files: one seam, where tests inject faults and record what is done.
//
// Each returns what the system call returns, with errors as -errno; EINTR is passed on, except where a header
// says otherwise, so that callers own their retry loops. Thread-safe.
#ifndef ELASTATES_STORAGE_SYSCALLS_H_
#define ELASTATES_STORAGE_SYSCALLS_H_

#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"

namespace elastates {
namespace sys {

// `fault_op`: what the call is called where faults are set.
int Open(const std::string& path, int flags, mode_t mode, const char* fault_op = "open");
int Close(int fd);
int Unlink(const std::string& path);
int Rmdir(const std::string& path);
int Mkdir(const std::string& path, mode_t mode);
int Link(const std::string& from, const std::string& to);
int Rename(const std::string& from, const std::string& to);
int Fsync(int fd, const char* fault_op = "fsync");
int Ftruncate(int fd, uint64_t size_bytes, const char* fault_op = "ftruncate");
int Fallocate(int fd, uint64_t size_bytes);  // reserves [0, size_bytes) and sets the length
int SetDirect(int fd, bool direct);          // switches O_DIRECT; -EINVAL where the file system has none
int64_t FileSize(int fd);
ssize_t PWrite(int fd, const void* data, size_t length, uint64_t offset, const char* fault_op = "write");
ssize_t PRead(int fd, void* data, size_t length, uint64_t offset);

// For a write that a ring will do in place of PWrite: may shorten *length, or gives the result without any
// write. If it does not, BeginWrite() comes before the ring has the write and EndWrite() after it, with the
// result.
std::optional<ssize_t> InterceptWrite(int fd, size_t* length);
uint64_t BeginWrite(int fd, const void* data, size_t length, uint64_t offset);
void EndWrite(uint64_t ticket, ssize_t result);

// Calls again while the answer is -EINTR.
template <typename Call>
auto RetryInterrupted(const Call& call) {
  auto result = call();
  while (result == -EINTR) result = call();
  return result;
}

}  // namespace sys

// Makes the names inside `path` durable: created, renamed and removed entries survive a power cut.
Status SyncDirectory(const std::string& path);

// Renames, unless `to` exists: then an error with sys_errno() EEXIST, and nothing changes. Atomic where the
// file system has RENAME_NOREPLACE; elsewhere a look and a rename, safe while one process publishes at a
// time.
Status RenameNoReplace(const std::string& from, const std::string& to);

}  // namespace elastates

#endif  // ELASTATES_STORAGE_SYSCALLS_H_
