#include "storage/small_file.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "storage/syscalls.h"

namespace elastates {
namespace {

constexpr mode_t kFileMode = 0644;

Result<OwnedFd> OpenWith(const std::string& path, int flags) {
  OwnedFd fd(sys::RetryInterrupted([&] { return sys::Open(path, flags, kFileMode, "small_open"); }));
  if (!fd) return Status::FromErrno(-fd.get(), "creating " + path);
  return fd;
}

}  // namespace

Status WriteAt(int fd, const std::string& path, std::string_view content, uint64_t offset) {
  for (size_t written = 0; written < content.size();) {
    const ssize_t result =
        sys::PWrite(fd, content.data() + written, content.size() - written, offset + written, "small_write");
    if (result == -EINTR) continue;
    if (result <= 0)
      return Status::FromErrno(result == 0 ? EIO : static_cast<int>(-result), "writing " + path);
    written += static_cast<size_t>(result);
  }
  return Status::Ok();
}

Status SetLength(int fd, const std::string& path, uint64_t size_bytes) {
  const int result = sys::RetryInterrupted([&] { return sys::Ftruncate(fd, size_bytes, "small_ftruncate"); });
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "truncating " + path);
}

Status SyncFile(int fd, const std::string& path) {
  const int result = sys::RetryInterrupted([&] { return sys::Fsync(fd, "small_fsync"); });
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "syncing " + path);
}

Status WriteSynced(const std::string& path, std::string_view content) {
  Result<OwnedFd> opened = OpenWith(path, O_WRONLY | O_CREAT | O_EXCL);
  if (!opened.ok()) return opened.status();
  OwnedFd fd = std::move(opened).value();
  if (Status status = WriteAt(fd.get(), path, content, 0); !status.ok()) return status;
  if (Status status = SyncFile(fd.get(), path); !status.ok()) return status;
  const int result = sys::Close(fd.Release());
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "closing " + path);
}

Result<OwnedFd> OpenOrCreate(const std::string& path) { return OpenWith(path, O_RDWR | O_CREAT); }

Status Overwrite(int fd, const std::string& path, std::string_view content) {
  if (Status status = SetLength(fd, path, 0); !status.ok()) return status;
  return WriteAt(fd, path, content, 0);
}

}  // namespace elastates
