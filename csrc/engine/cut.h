// Cutting a plan into chunks, and chunks into pieces: pure arithmetic on offsets.
//
// Chunks come in ascending order from a cursor, so that a plan of any size costs one pass. Values, no
// thread-safety.
#ifndef ELASTATES_ENGINE_CUT_H_
#define ELASTATES_ENGINE_CUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/plan.h"

namespace elastates {

constexpr uint64_t kFileAlignment = 4096;  // what O_DIRECT asks of a block's length

inline uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The file range [begin, end) that lies in one arena block, and where the plan's lists begin to matter for
// it.
struct ChunkRange {
  uint64_t begin = 0;
  uint64_t end = 0;
  size_t first_segment = 0;
  size_t first_extent = 0;
  uint64_t number = 0;  // of the file's chunks, from 0
  uint64_t size_bytes() const { return end - begin; }
};

// What a chunk, an extent and a segment have in common: copied by one call.
struct Piece {
  const char* src;
  uint64_t file_offset;
  uint64_t size_bytes;
  size_t extent;
  const Segment* segment;
  bool ends_extent;
};

class ChunkCursor {
 public:
  // REQUIRES: ValidatePlan(plan, block_bytes).ok(); the plan outlives the cursor.
  ChunkCursor(const SnapshotPlan& plan, uint64_t block_bytes) : plan_(&plan), block_bytes_(block_bytes) {}

  bool AtEnd() const { return next_.begin >= plan_->file_size; }
  ChunkRange Next() {  // REQUIRES: !AtEnd()
    ChunkRange chunk = next_;
    chunk.end = std::min(chunk.begin + block_bytes_, plan_->file_size);
    next_.begin = chunk.end;
    ++next_.number;
    const auto& segments = plan_->segments;
    while (next_.first_segment < segments.size() && SegmentEnd(segments[next_.first_segment]) <= chunk.end) {
      ++next_.first_segment;
    }
    const auto& ends = plan_->extent_ends;
    while (next_.first_extent < ends.size() && ends[next_.first_extent] <= chunk.end) ++next_.first_extent;
    return chunk;
  }

  static uint64_t SegmentEnd(const Segment& segment) { return segment.file_offset + segment.size_bytes; }

 private:
  const SnapshotPlan* plan_;
  uint64_t block_bytes_;
  ChunkRange next_;
};

inline uint64_t NumChunks(const SnapshotPlan& plan, uint64_t block_bytes) {
  return (plan.file_size + block_bytes - 1) / block_bytes;
}

// Calls visit(Piece) for every non-empty piece of the chunk, in file order.
template <typename Visit>
void ForEachPiece(const SnapshotPlan& plan, const ChunkRange& chunk, Visit visit) {
  size_t extent = chunk.first_extent;
  uint64_t at = std::max<uint64_t>(chunk.begin, plan.header.size());
  for (size_t i = chunk.first_segment; i < plan.segments.size() && at < chunk.end; ++i) {
    const Segment& segment = plan.segments[i];
    const uint64_t segment_end = std::min(ChunkCursor::SegmentEnd(segment), chunk.end);
    while (at < segment_end) {
      const uint64_t end = std::min(segment_end, plan.extent_ends[extent]);
      const bool ends_extent = end == plan.extent_ends[extent];
      visit(Piece{segment.data + (at - segment.file_offset), at, end - at, extent, &segment, ends_extent});
      at = end;
      extent += ends_extent;
    }
  }
}

}  // namespace elastates

#endif  // ELASTATES_ENGINE_CUT_H_
