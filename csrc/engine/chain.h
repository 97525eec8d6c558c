// What travels along the engine's chain of actors.
//
// Register values: plain structs, handed on by messages, each owned by one register at a time. Leases and
// task pointers in them are references; a block is free again when the register that holds its last lease has
// been acknowledged.
#ifndef ELASTATES_ENGINE_CHAIN_H_
#define ELASTATES_ENGINE_CHAIN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "arena/arena.h"
#include "base/trace.h"
#include "copy/device_copy.h"
#include "engine/cut.h"
#include "engine/snapshot.h"
#include "storage/file_sink.h"

namespace elastates {

// One snapshot on its way through the chain. A snapshot that fails early is cut short: `num_chunks` falls,
// before the chunk that is now the last is sent, to the number of chunks that have been.
struct Task {
  Task(std::shared_ptr<Snapshot> which, uint64_t chunks) : snapshot(std::move(which)), num_chunks(chunks) {}
  const SnapshotPlan& plan() const { return snapshot->plan(); }

  const std::shared_ptr<Snapshot> snapshot;
  std::atomic<uint64_t> num_chunks;
  std::unique_ptr<FileSink> sink;  // opened by Write, then the queue's, then Commit's
  uint64_t bytes_to_write = 0;     // Write's, then Commit's
  uint64_t num_sealed = 0;         // Seal's
};
using TaskPtr = std::shared_ptr<Task>;

struct Chunk {  // capture -> copy: fill this block
  TaskPtr task;
  ChunkRange range;
  Lease block;
};

struct FilledBlock {  // copy -> write
  TaskPtr task;
  ChunkRange range;
  Lease block;
  std::vector<DeviceCopier::Ticket> tickets;  // copies from devices that are still under way: see Checksum
};

struct WrittenBlock {  // write -> seal
  TaskPtr task;
};

struct SealedFile {  // seal -> commit: every block has been written, or has drained
  TaskPtr task;
};

inline trace::Subject SubjectOf(const Task& task, const ChunkRange& range) {
  return {task.snapshot->id(), range.number, range.size_bytes()};
}

struct Counters {
  std::atomic<uint64_t> num_submitted{0};
  std::atomic<uint64_t> num_written{0};
  std::atomic<uint64_t> num_failed{0};
  std::atomic<uint64_t> bytes_copied{0};
  std::atomic<uint64_t> bytes_stored{0};   // of blocks that storage has taken
  std::atomic<uint64_t> bytes_written{0};  // without holes
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_CHAIN_H_
