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

Status WriteAll(int fd, const std::string& path, std::string_view content) {
  for (size_t written = 0; written < content.size();) {
    const ssize_t result =
        sys::PWrite(fd, content.data() + written, content.size() - written, written, "small_write");
    if (result == -EINTR) continue;
    if (result <= 0)
      return Status::FromErrno(result == 0 ? EIO : static_cast<int>(-result), "writing " + path);
    written += static_cast<size_t>(result);
  }
  return Status::Ok();
}

}  // namespace

Status WriteSynced(const std::string& path, std::string_view content) {
  Result<OwnedFd> opened = OpenWith(path, O_WRONLY | O_CREAT | O_EXCL);
  if (!opened.ok()) return opened.status();
  OwnedFd fd = std::move(opened).value();
  if (Status status = WriteAll(fd.get(), path, content); !status.ok()) return status;
  int result = sys::RetryInterrupted([&] { return sys::Fsync(fd.get(), "small_fsync"); });
  if (result < 0) return Status::FromErrno(-result, "syncing " + path);
  result = sys::Close(fd.Release());
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "closing " + path);
}

Result<OwnedFd> OpenOrCreate(const std::string& path) { return OpenWith(path, O_RDWR | O_CREAT); }

Status Overwrite(int fd, const std::string& path, std::string_view content) {
  const int result = sys::RetryInterrupted([&] { return sys::Ftruncate(fd, 0, "small_ftruncate"); });
  if (result < 0) return Status::FromErrno(-result, "truncating " + path);
  return WriteAll(fd, path, content);
}

}  // namespace elastates
