#include "storage/verified_read.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include "base/crc32c.h"
#include "base/thread.h"
#include "copy/host_copy.h"
#include "storage/owned_fd.h"
#include "storage/read_plan.h"
#include "storage/syscalls.h"

namespace elastates {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = 2 << 20;
constexpr uint64_t kMaxRequestBytes = 1 << 30;  // Linux reads 2 GiB at most in one call

uint64_t RoundUp(uint64_t value, uint64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The file, read directly where it can be.
class SourceFile {
 public:
  Status Open(const std::string& path, uint64_t size_bytes, bool allow_direct) {
    path_ = path;
    int result;
    do {
      result = sys::Open(path, O_RDONLY, 0);
    } while (result == -EINTR);
    if (result < 0) return Status::FromErrno(-result, "opening " + path);
    fd_ = OwnedFd(result);
    if (Status status = CheckSize(size_bytes); !status.ok()) return status;
    direct_ = allow_direct && sys::SetDirect(fd_.get(), true) == 0;
    return Status::Ok();
  }

  // Fills `data` from [offset, offset + length) of the file; whatever lies behind its end stays unread.
  // REQUIRES: everything aligned to 4096, but the file's end. Thread-safe.
  Status Read(char* data, size_t length, uint64_t offset) {
    const size_t wanted = static_cast<size_t>(std::min<uint64_t>(length, size_bytes_ - offset));
    for (size_t done = 0; done < wanted;) {
      const bool direct = direct_.load(std::memory_order_relaxed);
      const ssize_t result = sys::PRead(fd_.get(), data + done, length - done, offset + done);
      if (result == -EINTR) continue;
      if (result == -EINVAL && direct) {
        if (Status status = TurnBuffered(); !status.ok()) return status;
        continue;
      }
      if (result < 0) return Status::FromErrno(static_cast<int>(-result), "reading " + Where(length, offset));
      if (result == 0)
        return Status(StatusCode::kDataLoss, "the file ended while reading " + Where(length, offset));
      done += static_cast<size_t>(result);
      if (done >= wanted || !direct || done % kPageBytes == 0) continue;
      // A direct read can only go on at a whole page.
      done -= done % kPageBytes;
      if (static_cast<size_t>(result) >= kPageBytes) continue;
      if (Status status = TurnBuffered(); !status.ok()) return status;
    }
    return Status::Ok();
  }

 private:
  Status CheckSize(uint64_t expected) {
    const int64_t actual = sys::FileSize(fd_.get());
    if (actual < 0) return Status::FromErrno(static_cast<int>(-actual), "asking for the size of " + path_);
    size_bytes_ = static_cast<uint64_t>(actual);
    if (size_bytes_ == expected) return Status::Ok();
    return Status(StatusCode::kDataLoss, path_ + " is " + std::to_string(actual) + " bytes long, expected " +
                                             std::to_string(expected));
  }

  Status TurnBuffered() {
    const int result = sys::SetDirect(fd_.get(), false);
    if (result < 0) return Status::FromErrno(-result, "turning O_DIRECT off for " + path_);
    direct_.store(false, std::memory_order_relaxed);
    return Status::Ok();
  }

  std::string Where(size_t length, uint64_t offset) const {
    return std::to_string(length) + " bytes at " + std::to_string(offset) + " of " + path_ + " (" +
           std::to_string(size_bytes_) + " bytes)";
  }

  std::string path_;
  uint64_t size_bytes_ = 0;
  OwnedFd fd_;
  std::atomic<bool> direct_{false};
};

// Aligned memory for one read at a time; huge pages, because the kernel pins every page of a direct read.
class StagingBuffer {
 public:
  explicit StagingBuffer(size_t size_bytes) : mapped_bytes_(size_bytes + kHugePageBytes) {
    base_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    data_ = reinterpret_cast<char*>(RoundUp(reinterpret_cast<uintptr_t>(base_), kHugePageBytes));
    madvise(data_, size_bytes, MADV_HUGEPAGE);  // advice only
  }
  ~StagingBuffer() { munmap(base_, mapped_bytes_); }
  StagingBuffer(const StagingBuffer&) = delete;
  StagingBuffer& operator=(const StagingBuffer&) = delete;

  char* data() const { return data_; }

 private:
  const size_t mapped_bytes_;
  void* base_;
  char* data_;
};

// One call of ReadVerified: workers take the planned reads in file order.
class Job {
 public:
  Job(SourceFile* file, const ReadPlan& plan, const std::vector<Scatter>& scatters, bool verify)
      : file_(file), plan_(plan), scatters_(scatters), verify_(verify), part_crcs_(plan.parts.size()) {}

  // Runs on every worker's thread.
  void Work() {
    try {
      const StagingBuffer staging(LargestRead());
      for (size_t i = next_read_++; i < plan_.reads.size() && !failed_; i = next_read_++) {
        if (Status status = Serve(plan_.reads[i], staging.data()); !status.ok())
          return Fail(std::move(status));
      }
    } catch (const std::exception& error) {
      Fail(Status(StatusCode::kResourceExhausted, std::string("a reader thread caught: ") + error.what()));
    }
  }

  // REQUIRES: every worker has returned.
  Status status() const { return status_; }
  uint64_t bytes_read() const { return bytes_read_; }

  std::vector<size_t> DamagedExtents(const std::vector<ReadExtent>& extents) const {
    std::vector<size_t> damaged;
    const std::vector<ReadPart>& parts = plan_.parts;
    for (size_t i = 0; i < parts.size();) {
      const size_t extent = parts[i].extent;
      uint32_t crc = part_crcs_[i++];
      for (; i < parts.size() && parts[i].extent == extent; ++i) {
        crc = Crc32cCombine(crc, part_crcs_[i], parts[i].end - parts[i].begin);
      }
      if (crc != extents[extent].crc) damaged.push_back(extent);
    }
    return damaged;
  }

 private:
  size_t LargestRead() const {
    uint64_t largest = 0;
    for (const PlannedRead& read : plan_.reads) largest = std::max(largest, read.end - read.begin);
    return static_cast<size_t>(largest);
  }

  Status Serve(const PlannedRead& read, char* staging) {
    const size_t length = static_cast<size_t>(read.end - read.begin);
    if (Status status = file_->Read(staging, length, read.begin); !status.ok()) return status;
    bytes_read_ += length;
    for (size_t i = read.first_part; i < read.end_part; ++i) {
      const ReadPart& part = plan_.parts[i];
      part_crcs_[i] = Spread(part, staging + (part.begin - read.begin));
    }
    return Status::Ok();
  }

  // Moves the bytes of a part, which lie at `data`, to wherever scatters want them. Returns their checksum.
  uint32_t Spread(const ReadPart& part, const char* data) {
    uint32_t crc = 0;
    uint64_t at = part.begin;
    const auto bytes_at = [&](uint64_t offset) { return data + (offset - part.begin); };
    auto scatter = std::upper_bound(scatters_.begin(), scatters_.end(), part.begin,
                                    [](uint64_t begin, const Scatter& s) { return begin < s.end; });
    for (; scatter != scatters_.end() && scatter->begin < part.end; ++scatter) {
      const uint64_t begin = std::max(scatter->begin, part.begin);
      const uint64_t end = std::min(scatter->end, part.end);
      crc = Skip(bytes_at(at), begin - at, crc);
      crc = Move(scatter->dst + (begin - scatter->begin), bytes_at(begin), end - begin, crc);
      at = end;
    }
    return Skip(bytes_at(at), part.end - at, crc);
  }

  uint32_t Skip(const char* data, uint64_t size_bytes, uint32_t crc) const {
    return verify_ ? Crc32c(data, size_bytes, crc) : 0;
  }

  uint32_t Move(char* dst, const char* src, uint64_t size_bytes, uint32_t crc) const {
    if (verify_) return CopyAndCrc32c(dst, src, size_bytes, crc);
    if (size_bytes > 0) std::memcpy(dst, src, size_bytes);
    return 0;
  }

  void Fail(Status status) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (status_.ok()) status_ = std::move(status);
    failed_ = true;
  }

  SourceFile* const file_;
  const ReadPlan& plan_;
  const std::vector<Scatter>& scatters_;
  const bool verify_;
  std::vector<uint32_t> part_crcs_;  // each element written by the one worker that serves its read
  std::atomic<size_t> next_read_{0};
  std::atomic<uint64_t> bytes_read_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  Status status_;  // guarded by mutex_ while workers run
};

// Runs the job on `num_threads` threads, this one among them.
void RunWorkers(Job* job, size_t num_threads) {
  std::vector<NamedThread> helpers;
  for (size_t i = 1; i < num_threads; ++i) {
    helpers.emplace_back("ds-read-" + std::to_string(i), [job] { job->Work(); });
  }
  job->Work();
}

}  // namespace

Result<ReadReport> ReadVerified(const std::string& path, uint64_t file_size,
                                const std::vector<ReadExtent>& extents, const std::vector<Scatter>& scatters,
                                const ReadOptions& options) {
  const uint64_t request_bytes =
      RoundUp(std::clamp<uint64_t>(options.request_bytes, 1, kMaxRequestBytes), kPageBytes);
  Result<ReadPlan> plan = PlanReads(file_size, extents, scatters, request_bytes, options.verify);
  if (!plan.ok()) return Status(plan.status().code(), path + ": " + plan.status().message());

  SourceFile file;
  if (Status status = file.Open(path, file_size, options.allow_direct); !status.ok()) return status;
  Job job(&file, plan.value(), scatters, options.verify);
  RunWorkers(&job, std::min<size_t>(std::max(options.num_threads, 1), plan.value().reads.size()));
  if (!job.status().ok()) return job.status();

  ReadReport report;
  if (options.verify) report.damaged_extents = job.DamagedExtents(extents);
  report.bytes_read = job.bytes_read();
  return report;
}

}  // namespace elastates
