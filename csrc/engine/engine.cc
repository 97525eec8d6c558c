#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "actor/graph.h"
#include "engine/capture.h"
#include "engine/chain.h"
#include "engine/chain_clock.h"
#include "engine/copy.h"
#include "engine/copy_priority.h"
#include "engine/write.h"
#include "storage/write_queue.h"

namespace elastates {
namespace {

// Chunks handed to each copy lane: one being copied, one waiting, so that the lane never idles and nobody
// hoards.
constexpr size_t kChunksPerCopyLane = 2;

Status ValidateOptions(const EngineOptions& options) {
  auto invalid = [](const std::string& what) {
    return Status(StatusCode::kInvalidArgument, "engine: " + what);
  };
  if (options.block_bytes == 0 || options.block_bytes % kFileAlignment != 0) {
    return invalid("block_bytes is " + std::to_string(options.block_bytes) + ", not a multiple of 4096");
  }
  if (options.num_copy_threads < 1)
    return invalid("num_copy_threads is " + std::to_string(options.num_copy_threads));
  if (options.write_depth < 1 || options.write_depth > 4096) {
    return invalid("write_depth is " + std::to_string(options.write_depth) + ", not in [1, 4096]");
  }
  return Status::Ok();
}

Result<std::unique_ptr<WriteQueue>> MakeQueue(const EngineOptions& options) {
  switch (options.write_backend) {
    case WriteBackend::kThreads:
      return MakeThreadWriteQueue(options.write_depth);
    case WriteBackend::kUring:
      return MakeUringWriteQueue(options.write_depth);
    case WriteBackend::kAuto:
      break;
  }
  return MakeWriteQueue(options.write_depth);
}

}  // namespace

// Members are destroyed in reverse: the graph, whose lanes use everything else, goes first.
class Engine::Impl {
 public:
  Impl(const EngineOptions& options, std::unique_ptr<Arena> arena, std::unique_ptr<WriteQueue> queue)
      : arena_(std::move(arena)),
        queue_(std::move(queue)),
        priority_(std::make_shared<CopyPriority>(options.copy_nice)) {
    BuildChain(options);
    arena_->SetFreedListener([this] {
      trace::Count("free blocks", [this] { return arena_->free_blocks(); });
      capture_->Wake();
    });
    priority_->SetUrgentListener([this] { capture_->Wake(); });
    graph_.Start();
  }

  std::shared_ptr<Snapshot> Submit(SnapshotPlan plan) {
    Reap();
    Status status = ValidatePlan(plan, arena_->block_bytes());
    auto on_waiter = [priority = priority_](int delta) { priority->OnWaiter(delta); };
    auto snapshot = std::make_shared<Snapshot>(std::move(plan), on_waiter);
    counters_.num_submitted.fetch_add(1, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) status = Status(StatusCode::kCancelled, "the engine is closed");
    if (!status.ok()) return Refuse(std::move(snapshot), status);
    snapshots_.push_back(snapshot);
    capture_->Submit(std::make_shared<Task>(snapshot, NumChunks(snapshot->plan(), arena_->block_bytes())));
    return snapshot;
  }

  bool HasCreditFor(uint64_t size_bytes) const {
    const uint64_t wanted = std::min<uint64_t>(size_bytes, arena_->num_blocks() * arena_->block_bytes());
    return free_bytes() >= capture_->uncut_bytes() + wanted;
  }

  size_t free_bytes() const { return arena_->free_blocks() * arena_->block_bytes(); }

  EngineStats stats() {
    EngineStats stats;
    stats.num_submitted = counters_.num_submitted.load(std::memory_order_relaxed);
    stats.num_written = counters_.num_written.load(std::memory_order_relaxed);
    stats.num_failed = counters_.num_failed.load(std::memory_order_relaxed);
    stats.bytes_copied = counters_.bytes_copied.load(std::memory_order_relaxed);
    stats.bytes_written = counters_.bytes_written.load(std::memory_order_relaxed);
    stats.bytes_stored = counters_.bytes_stored.load(std::memory_order_relaxed);
    const ChainClock::Times times = clock_.times();
    stats.copying_s = times.copying_s;
    stats.starved_s = times.starved_s;
    stats.arena_bytes = arena_->num_blocks() * arena_->block_bytes();
    stats.free_bytes = free_bytes();
    return stats;
  }

  // The list holds a reference to every snapshot, so the last one is never dropped by a lane: when only the
  // list's is left, nobody can make a new one, and it is destroyed here, outside the lock.
  void Reap() {
    std::vector<std::shared_ptr<Snapshot>> finished;
    std::lock_guard<std::mutex> lock(mutex_);
    auto in_use = [](const std::shared_ptr<Snapshot>& s) { return s.use_count() > 1 || !s->finished(); };
    auto dead = std::partition(snapshots_.begin(), snapshots_.end(), in_use);
    finished.assign(std::make_move_iterator(dead), std::make_move_iterator(snapshots_.end()));
    snapshots_.erase(dead, snapshots_.end());
  }

  void Close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    graph_.Close();
    queue_->Close();
    arena_->SetFreedListener(nullptr);
    priority_->SetUrgentListener(nullptr);
    Reap();
  }

  bool IsForked() const { return getpid() != pid_; }

  std::string Describe() {
    std::string text = graph_.Describe();
    return text + "arena: " + std::to_string(arena_->free_blocks()) + " of " +
           std::to_string(arena_->num_blocks()) + " blocks free\n";
  }

 private:
  void BuildChain(const EngineOptions& options) {
    const size_t num_copies = static_cast<size_t>(options.num_copy_threads);
    const auto depth = static_cast<uint16_t>(2 * options.write_depth);  // one being written, one waiting
    SinkOptions sink_options;
    sink_options.allow_direct = options.allow_direct;

    const size_t ahead_bytes = options.copy_ahead_bytes > 0 ? options.copy_ahead_bytes : SIZE_MAX;
    capture_ = &graph_.Add<Capture>(AddLane("ds-capture"), arena_.get(), kChunksPerCopyLane * num_copies,
                                    std::max<size_t>(ahead_bytes / options.block_bytes, 1), priority_.get(),
                                    &clock_);
    Lane& write_lane = AddLane("ds-write");
    auto& write = graph_.Add<Write>(write_lane, queue_.get(), depth, sink_options, &counters_);
    auto& seal = graph_.Add<Seal>(write_lane);
    auto& commit = graph_.Add<Commit>(AddLane("ds-commit"), &counters_);
    In<FilledBlock>* filled = NumDevices() > 0 ? AddChecksum(&write.in) : &write.in;
    for (size_t i = 0; i < num_copies; ++i) {
      Lane& lane = AddLane("ds-copy-" + std::to_string(i));
      auto& copy = graph_.Add<Copy>(lane, static_cast<int>(i), options.num_copy_threads, arena_->num_blocks(),
                                    priority_.get(), &counters_, &clock_);
      graph_.Connect(capture_->out, copy.in);
      graph_.Connect(copy.out, *filled);
    }
    graph_.Connect(write.out, seal.in);
    graph_.Connect(seal.out, commit.in);
  }

  // Every act of this chain takes long enough to be worth a hand-over of its own.
  Lane& AddLane(const std::string& name) { return graph_.AddLane(name, Flush::kEveryAct); }

  In<FilledBlock>* AddChecksum(In<FilledBlock>* write_in) {
    auto& checksum = graph_.Add<Checksum>(AddLane("ds-checksum"), arena_->num_blocks(), &counters_, &clock_);
    graph_.Connect(checksum.out, *write_in);
    return &checksum.in;
  }

  std::shared_ptr<Snapshot> Refuse(std::shared_ptr<Snapshot> snapshot, const Status& status) {
    counters_.num_failed.fetch_add(1, std::memory_order_relaxed);
    snapshot->job().Fail("submit", status);
    snapshot->MarkFinished();
    return snapshot;
  }

  const std::unique_ptr<Arena> arena_;
  const std::unique_ptr<WriteQueue> queue_;
  const std::shared_ptr<CopyPriority> priority_;  // snapshots outlive the engine
  Counters counters_;
  ChainClock clock_;
  Capture* capture_ = nullptr;  // owned by graph_
  const pid_t pid_ = getpid();

  std::mutex mutex_;
  bool closed_ = false;                               // guarded by mutex_
  std::vector<std::shared_ptr<Snapshot>> snapshots_;  // guarded by mutex_
  Graph graph_;
};

Result<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  Status status = ValidateOptions(options);
  if (!status.ok()) return status;
  ArenaOptions arena_options;
  arena_options.size_bytes = options.arena_bytes;
  arena_options.block_bytes = options.block_bytes;
  arena_options.pinned = options.pinned;
  auto arena = Arena::Create(arena_options);
  if (!arena.ok()) return arena.status();
  auto queue = MakeQueue(options);
  if (!queue.ok()) return queue.status();
  auto impl = std::make_unique<Impl>(options, std::move(arena).value(), std::move(queue).value());
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() {
  // A forked child has no lanes to join, and what they held is held for ever: its copy is left alone.
  if (impl_->IsForked()) {
    (void)impl_.release();
  } else {
    Close();
  }
}

std::shared_ptr<Snapshot> Engine::Submit(SnapshotPlan plan) { return impl_->Submit(std::move(plan)); }
bool Engine::HasCreditFor(uint64_t size_bytes) const { return impl_->HasCreditFor(size_bytes); }
size_t Engine::free_bytes() const { return impl_->free_bytes(); }
EngineStats Engine::stats() { return impl_->stats(); }
void Engine::Reap() { impl_->Reap(); }
void Engine::Close() { impl_->Close(); }
std::string Engine::Describe() { return impl_->Describe(); }

}  // namespace elastates
