// Every system call that touches files: one seam, where tests inject faults.
//
// Each returns what the system call returns, with errors as -errno; EINTR is passed on, except where a header
// says otherwise, so that callers own their retry loops. Thread-safe.
#ifndef ELASTATES_STORAGE_SYSCALLS_H_
#define ELASTATES_STORAGE_SYSCALLS_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"

namespace elastates {
namespace sys {

int Open(const std::string& path, int flags, mode_t mode);
int Close(int fd);
int Unlink(const std::string& path);
int Fsync(int fd);
int Ftruncate(int fd, uint64_t size_bytes);
int Fallocate(int fd, uint64_t size_bytes);  // reserves [0, size_bytes) and sets the length
int SetDirect(int fd, bool direct);          // switches O_DIRECT; -EINVAL where the file system has none
int64_t FileSize(int fd);
ssize_t PWrite(int fd, const void* data, size_t length, uint64_t offset);
ssize_t PRead(int fd, void* data, size_t length, uint64_t offset);

// For a write that a ring will do in place of PWrite: may shorten *length, or gives the result without any
// write.
std::optional<ssize_t> InterceptWrite(int fd, size_t* length);

}  // namespace sys

// Makes the names inside `path` durable: created, renamed and removed entries survive a power cut.
Status SyncDirectory(const std::string& path);

// Renames, unless `to` exists: then an error with sys_errno() EEXIST, and nothing changes. Atomic where the
// file system has RENAME_NOREPLACE; elsewhere a look and a rename, safe while one process publishes at a
// time.
Status RenameNoReplace(const std::string& from, const std::string& to);

}  // namespace elastates

#endif  // ELASTATES_STORAGE_SYSCALLS_H_
