#include "engine/capture.h"

#include <algorithm>

namespace elastates {

Capture::Capture(Arena* arena, size_t num_registers, size_t max_ahead_blocks, const CopyPriority* priority,
                 ChainClock* clock)
    : Actor("capture"),
      out(this, "chunks", num_registers, Fanout::kLeastLoaded),
      arena_(*arena),
      priority_(*priority),
      clock_(*clock),
      block_bytes_(arena->block_bytes()),
      max_ahead_blocks_(max_ahead_blocks),
      burst_blocks_(num_registers) {
  out.SetBacking([this](Chunk* chunk) { return !IsAhead() && Acquire(chunk); });
}

bool Capture::IsAhead() {
  const size_t num_used = arena_.num_blocks() - arena_.free_blocks();
  const size_t resume_at = max_ahead_blocks_ - std::min(max_ahead_blocks_ - 1, burst_blocks_);
  is_ahead_ = !priority_.IsUrgent() && num_used >= (is_ahead_ ? resume_at + 1 : max_ahead_blocks_);
  return is_ahead_;
}

bool Capture::Acquire(Chunk* chunk) {
  chunk->block = arena_.TryAcquire();
  const bool starved = !chunk->block;
  if (starved != starved_) {
    starved_ = starved;
    clock_.SetStarved(starved);
    if (!starved) trace::End("starved", starved_since_ns_, {current_->snapshot->id(), num_cut_, 0});
    starved_since_ns_ = starved ? trace::Begin() : 0;
  }
  return !starved;
}

void Capture::Submit(TaskPtr task) {
  uncut_bytes_.fetch_add(task->plan().file_size, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    pending_.push_back(std::move(task));
  }
  Wake();
}

Supply Capture::Poll() {
  if (current_ != nullptr) return Supply::kReady;
  std::lock_guard<std::mutex> lock(mutex_);
  if (pending_.empty()) return Supply::kIdle;
  current_ = std::move(pending_.front());
  pending_.pop_front();
  cursor_.emplace(current_->plan(), block_bytes_);
  num_cut_ = 0;
  return Supply::kReady;
}

Status Capture::Act() {
  trace::Slice slice("capture");
  TaskPtr task = current_;
  Snapshot& snapshot = *task->snapshot;
  BeginJob(&snapshot.job());
  Chunk& chunk = out.Emit();
  chunk.task = task;
  chunk.range = cursor_->Next();
  slice.subject = SubjectOf(*task, chunk.range);
  trace::Count("free blocks", [this] { return arena_.free_blocks(); });
  ++num_cut_;
  Status status = snapshot.status();
  uint64_t bytes_cut = chunk.range.size_bytes();
  if (!status.ok()) {
    task->num_chunks.store(num_cut_, std::memory_order_release);
    bytes_cut = task->plan().file_size - chunk.range.begin;
  }
  uncut_bytes_.fetch_sub(bytes_cut, std::memory_order_relaxed);
  if (cursor_->AtEnd() || !status.ok()) current_ = nullptr;
  return status;
}

}  // namespace elastates
