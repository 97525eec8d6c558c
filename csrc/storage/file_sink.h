// FileSink: one data file being written, in blocks that arrive in any order.
//
// Owns the descriptor. WriteAt() and the two halves of it are thread-safe; Finish() comes after every write
// has returned. O_DIRECT is used where the file system takes it, at open and at every write: the first
// refusal turns the file to buffered writes for good. Directories are synced by whoever publishes the file,
// not here.
#ifndef ELASTATES_STORAGE_FILE_SINK_H_
#define ELASTATES_STORAGE_FILE_SINK_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "storage/owned_fd.h"

namespace elastates {

// What O_DIRECT wants of addresses, offsets and lengths, on every file system we know.
constexpr size_t kDirectAlignment = 4096;

struct SinkOptions {
  bool allow_direct = true;
  bool preallocate = true;  // reserve the blocks now: a full disk or quota fails Create(), not the last write
};

// A block on its way to the file: what remains of it starts at data + written.
struct PendingWrite {
  const char* data;
  size_t length;
  uint64_t offset;
  size_t written = 0;
};

// The next system call for a PendingWrite.
struct WriteCall {
  const char* data;
  size_t length;
  uint64_t offset;
  bool direct;
};

class FileSink {
 public:
  // Creates `path`, which must not exist, for exactly `size_bytes` bytes. On failure nothing is left behind.
  static Result<std::unique_ptr<FileSink>> Create(const std::string& path, uint64_t size_bytes,
                                                  SinkOptions options = {});
  ~FileSink() =
      default;  // closes; a file without Finish() is incomplete, and removing it is its creator's work
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;

  // Writes [data, data + length) to [offset, offset + length) of the file; blocks. `data` and `offset` are
  // multiples of 4096, and so is `length`, except for the piece that ends the file: its buffer is readable up
  // to the next multiple, because O_DIRECT writes the padding too and Finish() cuts it off.
  Status WriteAt(const char* data, size_t length, uint64_t offset);

  // Fails unless `expected_bytes` were written, which is fewer than the file has if it is to keep holes; cuts
  // it to its size, syncs it (fsync: a new file's length is metadata) and closes it; each can fail, and then
  // the file must not be published. REQUIRES: every write has returned; called at most once.
  Status Finish(uint64_t expected_bytes);
  Status Finish() { return Finish(size_bytes_); }

  // The two halves of WriteAt(), for queues that make the system call themselves: Next() says which,
  // Advance() takes its result (bytes, or -errno) and says whether the block is on its way to failure;
  // IsDone() ends the loop.
  Status Check(const PendingWrite& pending) const;
  WriteCall Next(const PendingWrite& pending) const;
  Status Advance(PendingWrite* pending, const WriteCall& call, ssize_t result);
  static bool IsDone(const PendingWrite& pending) { return pending.written >= pending.length; }

  int fd() const { return fd_.get(); }
  bool direct() const { return direct_.load(std::memory_order_relaxed); }
  uint64_t size_bytes() const { return size_bytes_; }
  const std::string& path() const { return path_; }

 private:
  FileSink(std::string path, uint64_t size_bytes, OwnedFd fd, bool direct);
  Status Reserve(bool preallocate);
  Status TurnBuffered();
  std::string Where(uint64_t offset, size_t length) const;

  const std::string path_;
  const uint64_t size_bytes_;
  OwnedFd fd_;
  std::atomic<bool> direct_;
  std::atomic<uint64_t> written_bytes_{0};
};

}  // namespace elastates

#endif  // ELASTATES_STORAGE_FILE_SINK_H_
