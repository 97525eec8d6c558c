#include "engine/copy.h"

#include <cstring>

#include "base/crc32c.h"
#include "copy/host_copy.h"
#include "engine/copy_affinity.h"
#include "engine/delta.h"

namespace elastates {
namespace {

// Header bytes before the payload, zeros behind the end of the file up to what a direct write needs.
void FillEdges(const SnapshotPlan& plan, const ChunkRange& range, char* block) {
  if (range.begin < plan.header.size()) {
    const uint64_t end = std::min<uint64_t>(plan.header.size(), range.end);
    std::memcpy(block, plan.header.data() + range.begin, end - range.begin);
  }
  const uint64_t size_bytes = range.size_bytes();
  std::memset(block + size_bytes, 0, RoundUp(size_bytes, kFileAlignment) - size_bytes);
}

// Copies and checksums every piece in one pass.
void CopyFromHost(Snapshot* snapshot, const ChunkRange& range, char* block) {
  uint32_t crc = 0;
  ForEachPiece(snapshot->plan(), range, [&](const Piece& piece) {
    crc = CopyAndCrc32c(block + (piece.file_offset - range.begin), piece.src, piece.size_bytes, crc);
    if (!piece.ends_extent) return;
    snapshot->SetCrc(piece.extent, crc);
    crc = 0;
  });
}

void ChecksumExtents(Snapshot* snapshot, const ChunkRange& range, const char* block) {
  const SnapshotPlan& plan = snapshot->plan();
  uint64_t begin = std::max<uint64_t>(range.begin, plan.header.size());
  for (size_t extent = range.first_extent; extent < plan.extent_ends.size() && begin < range.end; ++extent) {
    const uint64_t end = plan.extent_ends[extent];
    snapshot->SetCrc(extent, Crc32c(block + (begin - range.begin), end - begin));
    begin = end;
  }
}

// Tells the snapshot which groups' bytes are in the arena now: once per run of pieces of one group, since a
// chunk may hold thousands.
Status CountCopied(Snapshot* snapshot, const ChunkRange& range, Counters* counters) {
  Status status;
  uint32_t group = 0;
  uint64_t run_bytes = 0;
  auto report_run = [&] {
    if (run_bytes > 0 && status.ok()) status = snapshot->GroupBytesCopied(group, run_bytes);
    counters->bytes_copied.fetch_add(run_bytes, std::memory_order_relaxed);
    run_bytes = 0;
  };
  ForEachPiece(snapshot->plan(), range, [&](const Piece& piece) {
    if (piece.segment->group != group) report_run();
    group = piece.segment->group;
    run_bytes += piece.size_bytes;
  });
  report_run();
  return status;
}

// Ends a copy that has begun, however its act ends.
struct CopyEnder {
  CopyEnder(Snapshot* which, ChainClock* whose) : snapshot(which), clock(whose) {}
  ~CopyEnder() {
    if (snapshot == nullptr) return;
    clock->OnCopyEnded();
    snapshot->EndCopy();
  }
  Snapshot* snapshot;
  ChainClock* clock;
};

bool ReadsDevices(const SnapshotPlan& plan, const ChunkRange& range) {
  for (size_t i = range.first_segment; i < plan.segments.size(); ++i) {
    if (plan.segments[i].file_offset >= range.end) return false;
    if (plan.segments[i].device >= 0 && plan.segments[i].size_bytes > 0) return true;
  }
  return false;
}

Status WaitForAll(const std::vector<DeviceCopier::Ticket>& tickets) {
  Status first;
  for (const auto& ticket : tickets) {
    Status status = ticket->Wait();
    if (first.ok()) first = status;
  }
  return first;
}

}  // namespace

Result<DeviceCopier*> DeviceCopiers::For(int device) {
  if (copiers_.size() <= static_cast<size_t>(device)) copiers_.resize(device + 1);
  auto& copier = copiers_[device];
  if (copier == nullptr) {
    auto created = DeviceCopier::Create(device);
    if (!created.ok()) return created.status();
    copier = std::move(created).value();
  }
  return copier.get();
}

Copy::Copy(int index, int num_threads, size_t num_blocks, CopyPriority* priority, Counters* counters,
           ChainClock* clock)
    : Actor("copy-" + std::to_string(index)),
      out(this, "blocks", num_blocks),
      index_(index),
      num_threads_(num_threads),
      priority_(*priority),
      counters_(*counters),
      clock_(*clock) {}

// On the lane's own thread, before its first copy.
void Copy::Start() {
  priority_.AddCurrentThread();
  SpreadOverCores(index_, num_threads_);
  has_started_ = true;
}

Status Copy::Act() {
  if (!has_started_) Start();
  const Chunk& chunk = in.Get();
  FilledBlock& block = out.Emit();
  block.task = chunk.task;
  block.range = chunk.range;
  Snapshot& snapshot = *chunk.task->snapshot;
  trace::Slice slice("copy");
  slice.subject = SubjectOf(*chunk.task, chunk.range);
  if (!snapshot.BeginCopy()) return snapshot.status();
  clock_.OnCopyBegun();
  CopyEnder ender(&snapshot, &clock_);
  Status status = Fill(chunk, &block);
  if (!block.tickets.empty()) ender.snapshot = nullptr;  // Checksum ends it
  return status;
}

void Copy::Drain() {
  FilledBlock& block = out.Emit();
  block.task = in.Get().task;
  block.range = in.Get().range;
}

Status Copy::Fill(const Chunk& chunk, FilledBlock* block) {
  Snapshot* snapshot = chunk.task->snapshot.get();
  block->block = chunk.block;
  FillEdges(snapshot->plan(), chunk.range, chunk.block.data());
  if (ReadsDevices(snapshot->plan(), chunk.range)) return FillFromDevices(chunk, block);
  if (snapshot->plan().content_key != nullptr) {
    CopyDigested(snapshot, chunk.range, chunk.block.data());
  } else {
    CopyFromHost(snapshot, chunk.range, chunk.block.data());
  }
  return CountCopied(snapshot, chunk.range, &counters_);
}

Status Copy::FillFromDevices(const Chunk& chunk, FilledBlock* block) {
  char* const data = chunk.block.data();
  std::vector<std::vector<DevicePiece>> pieces;  // by device
  ForEachPiece(chunk.task->plan(), chunk.range, [&](const Piece& piece) {
    char* dst = data + (piece.file_offset - chunk.range.begin);
    const int device = piece.segment->device;
    if (device < 0) {
      std::memcpy(dst, piece.src, piece.size_bytes);
      return;
    }
    if (pieces.size() <= static_cast<size_t>(device)) pieces.resize(device + 1);
    pieces[device].push_back({dst, piece.src, piece.size_bytes});
  });
  Status status = Launch(chunk, pieces, block);
  if (status.ok()) return status;
  (void)WaitForAll(
      block->tickets);  // what was launched still writes to the block; the first failure is the one to tell
  block->tickets.clear();
  return status;
}

Status Copy::Launch(const Chunk& chunk, const std::vector<std::vector<DevicePiece>>& pieces,
                    FilledBlock* block) {
  const auto& events = chunk.task->plan().producer_events;
  for (size_t device = 0; device < pieces.size(); ++device) {
    if (pieces[device].empty()) continue;
    auto copier = copiers_.For(static_cast<int>(device));
    if (!copier.ok()) return copier.status();
    const DeviceEvent* producer = device < events.size() ? events[device].get() : nullptr;
    auto ticket = copier.value()->Submit(pieces[device], producer);
    if (!ticket.ok()) return ticket.status();
    block->tickets.push_back(std::move(ticket).value());
  }
  return Status::Ok();
}

Checksum::Checksum(size_t num_blocks, Counters* counters, ChainClock* clock)
    : Actor("checksum"), out(this, "blocks", num_blocks), counters_(*counters), clock_(*clock) {}

Status Checksum::Act() {
  const FilledBlock& filled = in.Get();
  FilledBlock& block = out.Emit();
  block.task = filled.task;
  block.range = filled.range;
  block.block = filled.block;
  if (filled.tickets.empty()) return Status::Ok();
  Snapshot* snapshot = filled.task->snapshot.get();
  trace::Slice slice("checksum");
  slice.subject = SubjectOf(*filled.task, filled.range);
  CopyEnder ender(snapshot, &clock_);
  Status status = WaitForAll(filled.tickets);
  if (!status.ok()) return status;
  ChecksumExtents(snapshot, filled.range, filled.block.data());
  if (snapshot->plan().content_key != nullptr) DigestBlock(snapshot, filled.range, filled.block.data());
  return CountCopied(snapshot, filled.range, &counters_);
}

// Also runs after an act that failed, which has waited and ended the copy, and emitted already.
void Checksum::Drain() {
  const FilledBlock& filled = in.Get();
  FilledBlock& block = out.Emit();
  const bool has_acted = block.task != nullptr;
  block.task = filled.task;
  block.range = filled.range;
  if (has_acted || filled.tickets.empty()) return;
  (void)WaitForAll(filled.tickets);  // the snapshot has failed already
  clock_.OnCopyEnded();
  filled.task->snapshot->EndCopy();
}

}  // namespace elastates
