#include "engine/delta.h"

#include "base/content_hash.h"
#include "base/crc32c.h"
#include "copy/host_copy.h"

namespace elastates {
namespace {

// Both have to match: the digest, which no data can be made to share, and the checksum, which is what the
// file holds against the bytes.
bool IsUnchanged(const ExtentDigests* base, size_t extent, const ContentDigest& content, uint32_t crc) {
  return base != nullptr && base->contents[extent] == content && base->crcs[extent] == crc;
}

ContentDigest DigestPieces(const ContentKey& key, const std::vector<Piece>& pieces) {
  ContentHash hash(key);
  for (const Piece& piece : pieces) hash.Update(piece.src, piece.size_bytes);
  return hash.Finish();
}

uint32_t ChecksumPieces(const std::vector<Piece>& pieces) {
  uint32_t crc = 0;
  for (const Piece& piece : pieces) crc = Crc32c(piece.src, piece.size_bytes, crc);
  return crc;
}

// `pieces` make up one extent; `block` is where file offset `block_begin` goes.
void CopyExtent(Snapshot* snapshot, const std::vector<Piece>& pieces, char* block, uint64_t block_begin) {
  const size_t extent = pieces.front().extent;
  const SnapshotPlan& plan = snapshot->plan();
  const ContentDigest content = DigestPieces(*plan.content_key, pieces);
  snapshot->SetContent(extent, content);
  const ExtentDigests* base = plan.base.get();
  if (base != nullptr && base->contents[extent] == content &&
      IsUnchanged(base, extent, content, ChecksumPieces(pieces))) {
    snapshot->SetUnchanged(extent);
    snapshot->SetCrc(extent, base->crcs[extent]);
    return;
  }
  uint32_t crc = 0;
  for (const Piece& piece : pieces) {
    crc = CopyAndCrc32c(block + (piece.file_offset - block_begin), piece.src, piece.size_bytes, crc);
  }
  snapshot->SetCrc(extent, crc);
}

}  // namespace

void CopyDigested(Snapshot* snapshot, const ChunkRange& range, char* block) {
  std::vector<Piece> pieces;
  ForEachPiece(snapshot->plan(), range, [&](const Piece& piece) {
    pieces.push_back(piece);
    if (!piece.ends_extent) return;
    CopyExtent(snapshot, pieces, block, range.begin);
    pieces.clear();
  });
}

void DigestBlock(Snapshot* snapshot, const ChunkRange& range, const char* block) {
  const SnapshotPlan& plan = snapshot->plan();
  uint64_t begin = std::max<uint64_t>(range.begin, plan.header.size());
  for (size_t extent = range.first_extent; extent < plan.extent_ends.size() && begin < range.end; ++extent) {
    const uint64_t end = plan.extent_ends[extent];
    ContentHash hash(*plan.content_key);
    hash.Update(block + (begin - range.begin), end - begin);
    const ContentDigest content = hash.Finish();
    snapshot->SetContent(extent, content);
    if (IsUnchanged(plan.base.get(), extent, content, snapshot->crcs()[extent]))
      snapshot->SetUnchanged(extent);
    begin = end;
  }
}

std::vector<FileRun> RunsToWrite(const Snapshot& snapshot, const ChunkRange& range) {
  const SnapshotPlan& plan = snapshot.plan();
  if (plan.base == nullptr) return {{range.begin, range.end}};
  std::vector<FileRun> runs;
  uint64_t begin = std::max<uint64_t>(range.begin, plan.header.size());
  if (range.begin < begin) runs.push_back({range.begin, std::min(begin, range.end)});
  for (size_t extent = range.first_extent; extent < plan.extent_ends.size() && begin < range.end; ++extent) {
    const uint64_t end = plan.extent_ends[extent];
    if (snapshot.extent_changed()[extent] != 0) {
      if (runs.empty() || runs.back().end != begin) runs.push_back({begin, begin});
      runs.back().end = end;
    }
    begin = end;
  }
  return runs;
}

}  // namespace elastates
