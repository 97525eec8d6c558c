#include "arena/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "copy/device_copy.h"

namespace elastates {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = 2 << 20;

size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One anonymous mapping, of which the part from a huge-page border on is used; page-locked on request.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    // Nothing to report to: unpinning fails only when the CUDA driver is gone, and the pages with it.
    if (pinned_) (void)UnpinHostMemory(data_);
    if (base_ != MAP_FAILED) munmap(base_, mapped_bytes_);
  }

  Status Map(size_t size_bytes) {
    mapped_bytes_ = size_bytes + kHugePageBytes;
    base_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) {
      return Status::FromErrno(errno, "mapping an arena of " + std::to_string(size_bytes) + " bytes");
    }
    data_ = reinterpret_cast<char*>(RoundUp(reinterpret_cast<size_t>(base_), kHugePageBytes));
    // Advice, which a kernel may not take: fewer faults and TLB misses in the copy.
    madvise(data_, size_bytes, MADV_HUGEPAGE);
    return Status::Ok();
  }

  void Prefault(size_t size_bytes) {
#ifdef MADV_POPULATE_WRITE
    if (madvise(data_, size_bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
    // Kernels before 5.14: one store per page.
    for (size_t at = 0; at < size_bytes; at += kPageBytes) static_cast<volatile char*>(data_)[at] = 0;
  }

  Status Pin(size_t size_bytes) {
    Status status = PinHostMemory(data_, size_bytes);
    pinned_ = status.ok();
    return status;
  }

  char* data() const { return data_; }

 private:
  void* base_ = MAP_FAILED;
  size_t mapped_bytes_ = 0;
  char* data_ = nullptr;
  bool pinned_ = false;
};

}  // namespace

// A block while it is out: lives exactly as long as the leases on it, and keeps the pool alive.
struct ArenaBlock {
  std::shared_ptr<ArenaPool> pool;
  size_t index;
  char* data;

  ~ArenaBlock();
};

class ArenaPool : public std::enable_shared_from_this<ArenaPool> {
 public:
  Status Init(const ArenaOptions& options) {
    block_bytes_ = options.block_bytes;
    num_blocks_ = std::max<size_t>(1, (options.size_bytes + block_bytes_ - 1) / block_bytes_);
    const size_t size_bytes = num_blocks_ * block_bytes_;
    if (Status status = mapping_.Map(size_bytes); !status.ok()) return status;
    if (options.prefault) mapping_.Prefault(size_bytes);
    // Highest first: blocks are taken from the back, so that low ones are reused while they are warm.
    for (size_t i = num_blocks_; i > 0; --i) free_.push_back(i - 1);
    return options.pinned ? mapping_.Pin(size_bytes) : Status::Ok();
  }

  Lease TryAcquire() {
    size_t index;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (free_.empty()) return Lease();
      index = free_.back();
      free_.pop_back();
    }
    char* data = mapping_.data() + index * block_bytes_;
    return Lease(std::shared_ptr<ArenaBlock>(new ArenaBlock{shared_from_this(), index, data}));
  }

  void Free(size_t index) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(index);
      assert(free_.size() <= num_blocks_);
    }
    // Held while the listener runs: that is how SetListener() knows that the old one has ended.
    std::lock_guard<std::mutex> lock(listener_mutex_);
    if (listener_) listener_();
  }

  void SetListener(std::function<void()> listener) {
    std::lock_guard<std::mutex> lock(listener_mutex_);
    listener_ = std::move(listener);
  }

  size_t free_blocks() {
    std::lock_guard<std::mutex> lock(mutex_);
    return free_.size();
  }
  size_t num_blocks() const { return num_blocks_; }
  size_t block_bytes() const { return block_bytes_; }

 private:
  Mapping mapping_;
  size_t block_bytes_ = 0;
  size_t num_blocks_ = 0;
  std::mutex mutex_;
  std::vector<size_t> free_;        // guarded by mutex_
  std::mutex listener_mutex_;       // never taken under mutex_
  std::function<void()> listener_;  // guarded by listener_mutex_
};

ArenaBlock::~ArenaBlock() { pool->Free(index); }

char* Lease::data() const { return block_->data; }
size_t Lease::index() const { return block_->index; }

Result<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  if (options.block_bytes == 0 || options.block_bytes % kPageBytes != 0) {
    return Status(StatusCode::kInvalidArgument, "block_bytes (" + std::to_string(options.block_bytes) +
                                                    ") must be a positive multiple of 4096");
  }
  if (options.size_bytes > SIZE_MAX / 2 - options.block_bytes) {
    return Status(StatusCode::kInvalidArgument,
                  "size_bytes (" + std::to_string(options.size_bytes) + ") is no size of memory");
  }
  auto pool = std::make_shared<ArenaPool>();
  if (Status status = pool->Init(options); !status.ok()) return status;
  return std::unique_ptr<Arena>(new Arena(std::move(pool)));
}

Arena::~Arena() { pool_->SetListener(nullptr); }

Lease Arena::TryAcquire() { return pool_->TryAcquire(); }
size_t Arena::num_blocks() const { return pool_->num_blocks(); }
size_t Arena::free_blocks() const { return pool_->free_blocks(); }
size_t Arena::block_bytes() const { return pool_->block_bytes(); }
void Arena::SetFreedListener(std::function<void()> listener) { pool_->SetListener(std::move(listener)); }

}  // namespace elastates
