// Engine: files of training state, written behind the trainer's back by a chain of actors.
//
//   capture ------> copy (x num_copy_threads) ------> write ------> seal ------> commit
//   cuts chunks,    fills blocks, one CRC32C          WriteQueue    counts       truncate, fsync,
//   leases blocks   per extent, in one pass           async         N -> 1       close, own lane
//
// One arena of leased blocks is the only memory and the only back-pressure: when it is full, capture waits
// for credit. A failure fails one snapshot: its blocks drain, its file is closed, later snapshots go on. The
// engine owns its threads; all methods are thread-safe.
#ifndef ELASTATES_ENGINE_ENGINE_H_
#define ELASTATES_ENGINE_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "engine/plan.h"
#include "engine/snapshot.h"

namespace elastates {

enum class WriteBackend { kAuto, kThreads, kUring };

struct EngineOptions {
  size_t arena_bytes = size_t{256} << 20;
  size_t block_bytes = size_t{8} << 20;  // multiple of 4096
  int num_copy_threads = 2;
  WriteBackend write_backend = WriteBackend::kAuto;
  int write_depth = 4;  // writes in flight: writer threads, or io_uring entries
  // How far copies run ahead of storage while nobody waits for them; 0: as far as the arena goes.
  size_t copy_ahead_bytes = 0;
  int copy_nice = 0;         // nice value of copy threads while nobody waits for them (see copy_priority.h)
  bool pinned = false;       // page-lock the arena for CUDA
  bool allow_direct = true;  // O_DIRECT where the file system takes it
};

struct EngineStats {
  uint64_t num_submitted = 0;
  uint64_t num_written = 0;
  uint64_t num_failed = 0;
  uint64_t bytes_copied = 0;
  uint64_t bytes_stored = 0;   // of blocks that storage has taken, those of unfinished files included
  uint64_t bytes_written = 0;  // of the files written, without the holes of deltas
  double copying_s = 0;        // see ChainClock
  double starved_s = 0;
  size_t arena_bytes = 0;
  size_t free_bytes = 0;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> Create(EngineOptions options);
  ~Engine();  // Close()

  // Never blocks and never fails: a plan that cannot be accepted gives a snapshot that has failed already.
  // Snapshots are captured in the order of submission. REQUIRES: the same thread may destroy owners (see
  // Reap()).
  std::shared_ptr<Snapshot> Submit(SnapshotPlan plan);

  // Whether a snapshot of that many bytes could be copied now without waiting for storage.
  bool HasCreditFor(uint64_t size_bytes) const;
  size_t free_bytes() const;
  EngineStats stats();

  // Destroys finished snapshots (and with them owners that nobody took) that only the engine still holds, on
  // the calling thread. Submit() and Close() do it too.
  void Reap();

  // Finishes everything submitted, joins the threads. Idempotent.
  void Close();

  // Which actor waits for which register; for diagnosing a stall.
  std::string Describe();

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_ENGINE_H_
