// Delta: extents compared with the base's, and what is left to copy and to write.
//
// The functions that a plan with a content key takes in place of the plain copy. Each extent is read from
// memory once: it is digested first, which brings it into the cache, and copied from there if it changed.
#ifndef ELASTATES_ENGINE_DELTA_H_
#define ELASTATES_ENGINE_DELTA_H_

#include <vector>

#include "engine/cut.h"
#include "engine/snapshot.h"

namespace elastates {

// Host memory: digests the chunk's extents, copies those that differ from the base's (without one, all) to
// their places in the block, and tells the snapshot checksums, digests and what is unchanged.
void CopyDigested(Snapshot* snapshot, const ChunkRange& range, char* block);

// The same for a block that is filled and checksummed already, as it is after copies from devices.
void DigestBlock(Snapshot* snapshot, const ChunkRange& range, const char* block);

// Bytes [begin, end) of the file.
struct FileRun {
  uint64_t begin;
  uint64_t end;
};

// What of the chunk has to be written: the header, and runs of changed extents. Without a base one run, all
// of it. REQUIRES: the chunk's extents have been compared.
std::vector<FileRun> RunsToWrite(const Snapshot& snapshot, const ChunkRange& range);

}  // namespace elastates

#endif  // ELASTATES_ENGINE_DELTA_H_
