// Capture: the source of the chain. Cuts submitted snapshots into chunks, in order, one per act, each with a
// leased block.
//
// Nothing is cut ahead of its credit: an arena full of unwritten blocks makes Capture wait, and with it
// whoever waits for copies. While nobody does, Capture also keeps to a pace: no more than `max_ahead_blocks`
// are in use, so that copies come as storage takes them instead of in one burst, and the few blocks that go
// round are still in the caches when the disk reads them. It cuts several chunks at a time, one or two for
// each copy thread: what all of them do together for a millisecond costs a parallel trainer that millisecond,
// what they do in turn costs it the sum. Submit() may be called from any thread and never waits for the lane.
#ifndef ELASTATES_ENGINE_CAPTURE_H_
#define ELASTATES_ENGINE_CAPTURE_H_

#include <atomic>
#include <deque>
#include <mutex>
#include <optional>

#include "actor/actor.h"
#include "engine/chain.h"
#include "engine/chain_clock.h"
#include "engine/copy_priority.h"

namespace elastates {

class Capture : public Actor {
 public:
  Capture(Arena* arena, size_t num_registers, size_t max_ahead_blocks, const CopyPriority* priority,
          ChainClock* clock);

  void Submit(TaskPtr task);
  // Bytes submitted that have no block yet. Any thread.
  uint64_t uncut_bytes() const { return uncut_bytes_.load(std::memory_order_relaxed); }

  Out<Chunk> out;

 private:
  Supply Poll() override;
  Status Act() override;
  bool IsAhead();
  bool Acquire(Chunk* chunk);
  void Drain() override {}  // what the act emitted goes on as an error: Seal counts it

  Arena& arena_;
  const CopyPriority& priority_;
  ChainClock& clock_;
  const uint64_t block_bytes_;
  const size_t max_ahead_blocks_;
  const size_t burst_blocks_;  // as many as the copy threads take at once
  bool is_ahead_ = false;
  TaskPtr current_;
  std::optional<ChunkCursor> cursor_;  // into current_'s plan
  uint64_t num_cut_ = 0;               // chunks of current_
  bool starved_ = false;               // the last act waits for a block
  int64_t starved_since_ns_ = 0;       // while recorded
  std::atomic<uint64_t> uncut_bytes_{0};

  std::mutex mutex_;
  std::deque<TaskPtr> pending_;  // guarded by mutex_
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_CAPTURE_H_
