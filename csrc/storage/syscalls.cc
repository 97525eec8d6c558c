#include "storage/syscalls.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "storage/fault.h"
#include "storage/owned_fd.h"
#include "storage/recording.h"

namespace elastates {

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) (void)sys::Close(fd_);
}

namespace sys {
namespace {

// The errno, negated, that an injected fault puts in place of this call; 0 for none.
int InjectedError(const char* op, int fd = -1) {
  const std::optional<Fault> fault = TakeFault(op, fd);
  return fault ? -fault->error : 0;
}

// The same for reads and writes, which a fault may also shorten.
std::optional<ssize_t> Intercept(const char* op, int fd, size_t* length) {
  const std::optional<Fault> fault = TakeFault(op, fd);
  if (!fault) return std::nullopt;
  if (fault->error != 0) return -fault->error;
  if (fault->end_of_file) return 0;
  if (*length > 1) *length = *length > fault->short_by ? *length - fault->short_by : 1;
  return std::nullopt;
}

template <typename T>
T OrErrno(T result) {
  return result < 0 ? -errno : result;
}

// Does `call`, and records what `describe` says of it.
template <typename Describe, typename Call>
auto Recorded(const Describe& describe, const Call& call) {
  if (!recording::IsOn()) return call();
  const uint64_t ticket = recording::Begin(describe());
  const auto result = call();
  recording::End(ticket, result);
  return result;
}

FileOperation OnPath(const char* op, const std::string& path, const std::string& destination = "") {
  FileOperation operation;
  operation.op = op;
  operation.path = path;
  operation.destination = destination;
  return operation;
}

FileOperation OnFile(const char* op, int fd, uint64_t size_bytes = 0) {
  char path[PATH_MAX];
  const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
  FileOperation operation = OnPath(op, std::string(path, length < 0 ? 0 : static_cast<size_t>(length)));
  operation.size_bytes = size_bytes;
  return operation;
}

FileOperation OfWrite(int fd, const void* data, size_t length, uint64_t offset) {
  FileOperation operation = OnFile("write", fd, length);
  operation.offset = offset;
  operation.data.assign(static_cast<const char*>(data), length);
  return operation;
}

bool IsDirectory(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace

int Open(const std::string& path, int flags, mode_t mode, const char* fault_op) {
  if (const int injected = InjectedError(fault_op)) return injected;
  const auto call = [&] { return OrErrno(open(path.c_str(), flags | O_CLOEXEC, mode)); };
  if ((flags & O_CREAT) == 0) return call();
  return Recorded([&] { return OnPath("create", path); }, call);
}

int Close(int fd) {
  const int injected = InjectedError("close", fd);
  const int result = OrErrno(close(fd));  // in any case: a descriptor kept back would leak
  if (injected != 0) return injected;
  return result == -EINTR ? 0 : result;  // on Linux the descriptor is gone all the same
}

int Unlink(const std::string& path) {
  if (const int injected = InjectedError("unlink")) return injected;
  return Recorded([&] { return OnPath("unlink", path); }, [&] { return OrErrno(unlink(path.c_str())); });
}

int Rmdir(const std::string& path) {
  if (const int injected = InjectedError("rmdir")) return injected;
  return Recorded([&] { return OnPath("rmdir", path); }, [&] { return OrErrno(rmdir(path.c_str())); });
}

int Mkdir(const std::string& path, mode_t mode) {
  if (const int injected = InjectedError("mkdir")) return injected;
  return Recorded([&] { return OnPath("mkdir", path); }, [&] { return OrErrno(mkdir(path.c_str(), mode)); });
}

int Link(const std::string& from, const std::string& to) {
  if (const int injected = InjectedError("link")) return injected;
  return Recorded([&] { return OnPath("link", from, to); },
                  [&] { return OrErrno(link(from.c_str(), to.c_str())); });
}

int Fsync(int fd, const char* fault_op) {
  if (const int injected = InjectedError(fault_op, fd)) return injected;
  return Recorded([&] { return OnFile(IsDirectory(fd) ? "fsync_directory" : "fsync", fd); },
                  [&] { return OrErrno(fsync(fd)); });
}

int Ftruncate(int fd, uint64_t size_bytes, const char* fault_op) {
  if (const int injected = InjectedError(fault_op, fd)) return injected;
  return Recorded([&] { return OnFile("ftruncate", fd, size_bytes); },
                  [&] { return OrErrno(ftruncate(fd, static_cast<off_t>(size_bytes))); });
}

int Fallocate(int fd, uint64_t size_bytes) {
  if (const int injected = InjectedError("fallocate", fd)) return injected;
  return Recorded([&] { return OnFile("fallocate", fd, size_bytes); },
                  [&] { return OrErrno(fallocate(fd, 0, 0, static_cast<off_t>(size_bytes))); });
}

int SetDirect(int fd, bool direct) {
  if (const int injected = InjectedError("direct", fd)) return injected;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return OrErrno(fcntl(fd, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT));
}

int64_t FileSize(int fd) {
  struct stat info;
  return fstat(fd, &info) < 0 ? -errno : static_cast<int64_t>(info.st_size);
}

ssize_t PWrite(int fd, const void* data, size_t length, uint64_t offset, const char* fault_op) {
  if (const auto result = Intercept(fault_op, fd, &length)) return *result;
  return Recorded([&] { return OfWrite(fd, data, length, offset); },
                  [&] { return OrErrno(pwrite(fd, data, length, static_cast<off_t>(offset))); });
}

ssize_t PRead(int fd, void* data, size_t length, uint64_t offset) {
  if (const auto result = Intercept("read", fd, &length)) return *result;
  return OrErrno(pread(fd, data, length, static_cast<off_t>(offset)));
}

std::optional<ssize_t> InterceptWrite(int fd, size_t* length) { return Intercept("write", fd, length); }

uint64_t BeginWrite(int fd, const void* data, size_t length, uint64_t offset) {
  return recording::IsOn() ? recording::Begin(OfWrite(fd, data, length, offset)) : 0;
}

void EndWrite(uint64_t ticket, ssize_t result) {
  if (ticket != 0) recording::End(ticket, result);
}

namespace {

int RenameWith(const std::string& from, const std::string& to, unsigned flags) {
  if (const int injected = InjectedError("rename")) return injected;
  return Recorded([&] { return OnPath("rename", from, to); },
                  [&] {
                    return static_cast<int>(
                        OrErrno(syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags)));
                  });
}

// For file systems without RENAME_NOREPLACE (NFS and some others).
int LookAndRename(const std::string& from, const std::string& to) {
  struct stat info;
  if (lstat(to.c_str(), &info) == 0) return -EEXIST;
  if (errno != ENOENT) return -errno;
  return Recorded([&] { return OnPath("rename", from, to); },
                  [&] { return OrErrno(std::rename(from.c_str(), to.c_str())); });
}

}  // namespace

int Rename(const std::string& from, const std::string& to) { return RenameWith(from, to, 0); }

}  // namespace sys

Status SyncDirectory(const std::string& path) {
  const OwnedFd fd(sys::RetryInterrupted([&] { return sys::Open(path, O_RDONLY | O_DIRECTORY, 0); }));
  if (!fd) return Status::FromErrno(-fd.get(), "opening directory " + path);
  const int result = sys::RetryInterrupted([&] { return sys::Fsync(fd.get()); });
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "syncing directory " + path);
}

Status RenameNoReplace(const std::string& from, const std::string& to) {
  int result = sys::RenameWith(from, to, RENAME_NOREPLACE);
  if (result == -EINVAL || result == -ENOSYS) result = sys::LookAndRename(from, to);
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "renaming " + from + " to " + to);
}

}  // namespace elastates
