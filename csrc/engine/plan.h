// SnapshotPlan: what one rank writes into one data file, as plain data.
//
// Built by the caller, moved into Engine::Submit(), never changed afterwards; safe to read from any thread.
//
//   file:     [ header | payload ........................................ ]  file_size
//   segments:          [ s0 | s1 | ...  tile the payload, ascending, no holes ]
//   extents:           [ e0 | e1 | ...  tile the payload too; one CRC32C each ]
//   chunks:   [ 0      | 1      | ...   every block_bytes of the *file*; one arena block each ]
//
// An extent never crosses a chunk border; a segment may span any number of chunks and extents.
//
// A plan with a base is a delta: extents that contain what the base's did are neither copied nor written, and
// the file has holes in their places.
#ifndef ELASTATES_ENGINE_PLAN_H_
#define ELASTATES_ENGINE_PLAN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/content_hash.h"
#include "base/status.h"
#include "copy/device_copy.h"

namespace elastates {

struct Segment {
  const char* data = nullptr;  // borrowed from SnapshotPlan::owner
  uint64_t size_bytes = 0;     // 0 is legal
  uint64_t file_offset = 0;
  uint32_t group = 0;   // which waiter it belongs to: the segments one optimizer writes share a group
  int32_t device = -1;  // CUDA device index, -1 for host memory
};

// What the extents of a snapshot contained.
struct ExtentDigests {
  std::shared_ptr<const ContentKey> key;
  std::vector<ContentDigest> contents;
  std::vector<uint32_t> crcs;
};

struct SnapshotPlan {
  std::string path;    // must not exist yet
  std::string header;  // the file's first bytes; no CRC of its own
  std::vector<Segment> segments;
  std::vector<uint64_t> extent_ends;  // ascending file offsets; the first extent begins at header.size()
  uint64_t file_size = 0;
  uint32_t num_groups = 1;

  std::shared_ptr<const ContentKey> content_key;  // digest every extent with it; null: no digests
  std::shared_ptr<const ExtentDigests> base;  // of the same extents and key; null: every extent is written

  // Keeps every segment's memory alive. The engine never destroys it: see Snapshot::TakeOwner().
  std::shared_ptr<void> owner;

  // Called once per non-empty group on an engine thread, after the group's last byte was copied and before
  // anybody is told so. A failure (kMutated) fails the snapshot. May be empty.
  std::function<Status(uint32_t group)> check_unchanged;

  // producer_events[d]: copies from CUDA device d wait for it first. Null or missing: for nothing.
  std::vector<std::shared_ptr<DeviceEvent>> producer_events;
};

// Whether the plan keeps the promises above; names the first one it breaks.
Status ValidatePlan(const SnapshotPlan& plan, uint64_t block_bytes);

}  // namespace elastates

#endif  // ELASTATES_ENGINE_PLAN_H_
