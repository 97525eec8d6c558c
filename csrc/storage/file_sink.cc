#include "storage/file_sink.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "storage/syscalls.h"

namespace elastates {
namespace {

constexpr mode_t kFileMode = 0644;

uint64_t RoundUp(uint64_t value) {
  return (value + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment;
}
size_t RoundDown(size_t value) { return value / kDirectAlignment * kDirectAlignment; }

}  // namespace

FileSink::FileSink(std::string path, uint64_t size_bytes, OwnedFd fd, bool direct)
    : path_(std::move(path)), size_bytes_(size_bytes), fd_(std::move(fd)), direct_(direct) {}

Result<std::unique_ptr<FileSink>> FileSink::Create(const std::string& path, uint64_t size_bytes,
                                                   SinkOptions options) {
  if (size_bytes > static_cast<uint64_t>(INT64_MAX) - kDirectAlignment) {
    return Status(StatusCode::kInvalidArgument,
                  std::to_string(size_bytes) + " bytes is no size of a file: " + path);
  }
  OwnedFd fd(sys::RetryInterrupted([&] { return sys::Open(path, O_CREAT | O_EXCL | O_WRONLY, kFileMode); }));
  if (!fd) return Status::FromErrno(-fd.get(), "creating " + path);
  // Not at open(): a file system that refuses O_DIRECT there has created the file already.
  const bool direct = options.allow_direct && sys::SetDirect(fd.get(), true) == 0;

  std::unique_ptr<FileSink> sink(new FileSink(path, size_bytes, std::move(fd), direct));
  if (Status status = sink->Reserve(options.preallocate); !status.ok()) {
    sys::Unlink(path);
    return status;
  }
  return sink;
}

// Which of them is fastest did not show: with a 1 GiB file, extending, fallocate and ftruncate first, 1 to 8
// writes in flight, threads and io_uring, blocks of 4, 8 and 16 MiB all reached 1.8 to 2.15 GB/s at best
// and 1.4 to 2.0 in the median of five interleaved runs, in no order. So what decides is that reserving finds
// a full disk now; and it sets the length, so that no write extends the file: ext4 lets only writes inside
// the length run side by side.
Status FileSink::Reserve(bool preallocate) {
  const uint64_t padded = RoundUp(size_bytes_);
  if (padded == 0) return Status::Ok();
  int result = -EOPNOTSUPP;
  if (preallocate) result = sys::RetryInterrupted([&] { return sys::Fallocate(fd(), padded); });
  if (result == -EOPNOTSUPP || result == -ENOSYS) {
    result = sys::RetryInterrupted([&] { return sys::Ftruncate(fd(), padded); });
  }
  if (result == 0) return Status::Ok();
  return Status::FromErrno(-result, "reserving " + std::to_string(padded) + " bytes for " + path_);
}

Status FileSink::WriteAt(const char* data, size_t length, uint64_t offset) {
  PendingWrite pending{data, length, offset};
  if (Status status = Check(pending); !status.ok()) return status;
  while (!IsDone(pending)) {
    const WriteCall call = Next(pending);
    const ssize_t result = sys::PWrite(fd(), call.data, call.length, call.offset);
    if (Status status = Advance(&pending, call, result); !status.ok()) return status;
  }
  return Status::Ok();
}

Status FileSink::Check(const PendingWrite& pending) const {
  const bool inside = pending.offset <= size_bytes_ && pending.length <= size_bytes_ - pending.offset;
  const bool last = inside && pending.offset + pending.length == size_bytes_;
  const bool aligned = reinterpret_cast<uintptr_t>(pending.data) % kDirectAlignment == 0 &&
                       pending.offset % kDirectAlignment == 0 &&
                       (last || pending.length % kDirectAlignment == 0);
  if (inside && aligned) return Status::Ok();
  const char* what = inside ? " is not aligned to 4096" : " leaves the file";
  return Status(StatusCode::kInvalidArgument, "writing " + Where(pending.offset, pending.length) + what);
}

WriteCall FileSink::Next(const PendingWrite& pending) const {
  const bool use_direct = direct();
  const size_t rest = pending.length - pending.written;
  return {pending.data + pending.written, use_direct ? RoundUp(rest) : rest, pending.offset + pending.written,
          use_direct};
}

Status FileSink::Advance(PendingWrite* pending, const WriteCall& call, ssize_t result) {
  if (result == -EINTR || result == -EAGAIN) return Status::Ok();
  // Some file systems take O_DIRECT at open and refuse it here.
  if (result == -EINVAL && call.direct) return TurnBuffered();
  if (result == 0) result = -EIO;  // neither bytes nor a reason: asking again could go on for ever
  if (result < 0)
    return Status::FromErrno(static_cast<int>(-result), "writing " + Where(call.offset, call.length));

  const size_t rest = pending->length - pending->written;
  size_t progress = std::min(static_cast<size_t>(result), rest);
  if (progress == rest) {
    pending->written = pending->length;
    written_bytes_.fetch_add(pending->length, std::memory_order_relaxed);
    return Status::Ok();
  }
  // A direct write can only go on at a whole page; the bytes past it are written again.
  if (call.direct) progress = RoundDown(progress);
  pending->written += progress;
  return progress > 0 ? Status::Ok() : TurnBuffered();
}

// Writes in flight keep what they were started with, and the kernel keeps both kinds coherent.
Status FileSink::TurnBuffered() {
  const int result = sys::SetDirect(fd(), false);
  if (result < 0) return Status::FromErrno(-result, "turning O_DIRECT off for " + path_);
  direct_.store(false, std::memory_order_relaxed);
  return Status::Ok();
}

Status FileSink::Finish(uint64_t expected_bytes) {
  // Cutting the file to its length would make holes of what was never written look like data.
  const uint64_t written = written_bytes_.load(std::memory_order_relaxed);
  if (written != expected_bytes) {
    return Status(StatusCode::kInternal, std::to_string(written) + " of " + std::to_string(expected_bytes) +
                                             " bytes were written to " + path_);
  }
  int result = sys::RetryInterrupted([&] { return sys::Ftruncate(fd(), size_bytes_); });
  if (result < 0)
    return Status::FromErrno(-result, "truncating " + path_ + " to " + std::to_string(size_bytes_));
  result = sys::RetryInterrupted([&] { return sys::Fsync(fd()); });
  if (result < 0) return Status::FromErrno(-result, "syncing " + path_);
  result = sys::Close(fd_.Release());
  return result == 0 ? Status::Ok() : Status::FromErrno(-result, "closing " + path_);
}

std::string FileSink::Where(uint64_t offset, size_t length) const {
  return std::to_string(length) + " bytes at " + std::to_string(offset) + " of " + path_ + " (" +
         std::to_string(size_bytes_) + " bytes)";
}

}  // namespace elastates
