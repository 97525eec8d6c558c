// Copy and Checksum: blocks are filled, and every extent gets its CRC32C.
//
// Several Copy actors, each on a lane of its own, take chunks from Capture. Host memory is copied and
// checksummed in one pass. Copies from CUDA devices are only launched here; their tickets travel with the
// block, so that several are in flight, to the Checksum actor, which waits for them, checksums the block and
// counts. Without devices there is no Checksum actor.
#ifndef ELASTATES_ENGINE_COPY_H_
#define ELASTATES_ENGINE_COPY_H_

#include <memory>
#include <string>
#include <vector>

#include "actor/actor.h"
#include "copy/device_copy.h"
#include "engine/chain.h"
#include "engine/chain_clock.h"
#include "engine/copy_priority.h"

namespace elastates {

// One copier per device, made when first needed. Belongs to one Copy actor.
class DeviceCopiers {
 public:
  Result<DeviceCopier*> For(int device);

 private:
  std::vector<std::unique_ptr<DeviceCopier>> copiers_;
};

class Copy : public Actor {
 public:
  Copy(int index, int num_threads, size_t num_blocks, CopyPriority* priority, Counters* counters,
       ChainClock* clock);

  In<Chunk> in{this, "chunks"};
  Out<FilledBlock> out;

 private:
  void Start();
  Status Act() override;
  void Drain() override;
  Status Fill(const Chunk& chunk, FilledBlock* block);
  Status FillFromDevices(const Chunk& chunk, FilledBlock* block);
  Status Launch(const Chunk& chunk, const std::vector<std::vector<DevicePiece>>& pieces, FilledBlock* block);

  const int index_;
  const int num_threads_;
  CopyPriority& priority_;
  Counters& counters_;
  ChainClock& clock_;
  DeviceCopiers copiers_;
  bool has_started_ = false;
};

class Checksum : public Actor {
 public:
  Checksum(size_t num_blocks, Counters* counters, ChainClock* clock);

  In<FilledBlock> in{this, "blocks"};
  Out<FilledBlock> out;

 private:
  Status Act() override;
  void Drain() override;

  Counters& counters_;
  ChainClock& clock_;
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_COPY_H_
