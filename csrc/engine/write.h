// Write, Seal and Commit: blocks become a file that is whole.
//
// Write opens the file when its first block arrives and hands blocks, of deltas the changed runs of blocks,
// to the queue; its acts are deferred until the queue answers. Seal counts them, N to 1, and Commit cuts,
// syncs and closes the file on a lane of its own, so that a slow fsync does not hold up the next snapshot's
// writes.
#ifndef ELASTATES_ENGINE_WRITE_H_
#define ELASTATES_ENGINE_WRITE_H_

#include <memory>

#include "actor/actor.h"
#include "engine/chain.h"
#include "engine/delta.h"
#include "storage/write_queue.h"

namespace elastates {

class Write : public Actor {
 public:
  Write(WriteQueue* queue, uint16_t depth, SinkOptions sink_options, Counters* counters);

  In<FilledBlock> in{this, "blocks"};
  Out<WrittenBlock> out;

 private:
  Status Act() override;
  void Drain() override { out.Emit().task = in.Get().task; }

  class PendingRuns;
  Status Open(Task* task) const;
  void Submit(const FilledBlock& block, const FileRun& run, std::shared_ptr<PendingRuns> pending);

  WriteQueue& queue_;
  const SinkOptions sink_options_;
  Counters& counters_;
};

class Seal : public Actor {
 public:
  Seal() : Actor("seal") {}

  In<WrittenBlock> in{this, "blocks"};
  Out<SealedFile> out{this, "files", 4};

 private:
  Status Act() override;
  void Drain() override { Count(); }
  void Count();
};

class Commit : public Actor {
 public:
  explicit Commit(Counters* counters) : Actor("commit"), counters_(*counters) {}

  In<SealedFile> in{this, "files"};

 private:
  Status Act() override;
  void Drain() override;

  Counters& counters_;
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_WRITE_H_
