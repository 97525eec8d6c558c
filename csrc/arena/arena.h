// Arena: one bounded host buffer, mapped once and lent out in equal blocks.
//
// A Lease is one reference to one block. Copies share the block; when the last one is gone the block is free
// and the listener hears of it. Blocks come back in any order. Leases may outlive the Arena: the memory goes
// with the last of them. Everything here is thread-safe, apart from two threads using one and the same Lease
// object.
#ifndef ELASTATES_ARENA_ARENA_H_
#define ELASTATES_ARENA_ARENA_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "base/status.h"

namespace elastates {

struct ArenaOptions {
  size_t size_bytes = 0;         // rounded up to whole blocks, at least one
  size_t block_bytes = 8 << 20;  // a multiple of 4096, so that O_DIRECT takes every block as it is
  bool pinned = false;           // page-locked for the GPU; Create() fails where there is none
  bool prefault = true;          // touch every page now, and not inside the first checkpoint
};

class ArenaPool;
struct ArenaBlock;

class Lease {
 public:
  Lease() = default;  // holds no block

  explicit operator bool() const { return block_ != nullptr; }
  char* data() const;    // REQUIRES: *this holds a block; aligned to 4096
  size_t index() const;  // REQUIRES: *this holds a block; in [0, num_blocks)
  void Release() { block_.reset(); }

 private:
  friend class ArenaPool;
  explicit Lease(std::shared_ptr<ArenaBlock> block) : block_(std::move(block)) {}

  std::shared_ptr<ArenaBlock> block_;
};

class Arena {
 public:
  static Result<std::unique_ptr<Arena>> Create(const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Lease TryAcquire();  // an empty Lease when every block is out

  size_t num_blocks() const;
  size_t free_blocks() const;
  size_t block_bytes() const;

  // `listener` runs after each block that becomes free, on the thread that dropped its last lease. It may
  // call TryAcquire() and keep what it gets, but must neither drop a lease nor set a listener. Once this
  // returns, the previous listener is not running and never will again; nullptr removes it, as the destructor
  // does.
  void SetFreedListener(std::function<void()> listener);

 private:
  explicit Arena(std::shared_ptr<ArenaPool> pool) : pool_(std::move(pool)) {}

  const std::shared_ptr<ArenaPool> pool_;
};

}  // namespace elastates

#endif  // ELASTATES_ARENA_ARENA_H_
