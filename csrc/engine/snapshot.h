// Snapshot: the future of one submitted plan, in three stages: groups copied -> all copied -> written.
//
// Shared by the caller and the engine's lanes; every method is thread-safe. Waits take a timeout in seconds
// (negative: no limit) and hold no lock of the caller's. The first failure is sticky: from then on every wait
// returns it.
#ifndef ELASTATES_ENGINE_SNAPSHOT_H_
#define ELASTATES_ENGINE_SNAPSHOT_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "actor/job.h"
#include "base/status.h"
#include "engine/plan.h"

namespace elastates {

// steady_clock seconds; 0 while the stage has not been reached.
struct SnapshotTimes {
  double submitted_s = 0;
  double copied_s = 0;
  double written_s = 0;
};

class Snapshot {
 public:
  // Told +1 when a thread starts to wait for copies and -1 when it stops; the engine speeds its copy lanes up
  // with it.
  using WaiterListener = std::function<void(int delta)>;

  Snapshot(SnapshotPlan plan, WaiterListener on_waiter);

  // When Ok: the group's (every group's) sources may be written to again; check_unchanged passed.
  // On a failure: no engine thread reads any source of this snapshot any more. kDeadlineExceeded leaves all
  // as it was.
  // The engine hurries while somebody waits for copies, and for whoever has said that he will.
  Status WaitGroupCopied(uint32_t group, double timeout_s);
  Status WaitCopied(double timeout_s);
  Status WatchCopied(double timeout_s);  // like WaitCopied(), without making it hurry
  void Hurry();
  // When Ok: the file has its exact length, is fsynced and closed.
  // On a failure: the file, if there was one, is closed, and the last arena blocks are on their way back; the
  // caller unlinks it.
  Status WaitWritten(double timeout_s);

  // One CRC32C per extent of the plan. REQUIRES: WaitWritten() returned Ok.
  const std::vector<uint32_t>& crcs() const { return crcs_; }
  // One per extent: 0 if it contains what the base's did and was therefore not written. Empty without a base.
  const std::vector<uint8_t>& extent_changed() const { return extent_changed_; }
  // For the base of a later plan; null unless the plan has a key. REQUIRES: WaitWritten() returned Ok.
  std::shared_ptr<const ExtentDigests> digests() const;
  SnapshotTimes times() const;
  uint64_t id() const { return id_; }              // of this process's snapshots, from 1
  uint64_t uncopied_bytes() const;                 // of the payload
  Status status() const { return job_.status(); }  // sticky first failure, Ok until then
  bool sources_released() const;
  bool finished() const;  // written or failed, nothing of it left in the engine's lanes

  // The plan's owner once sources_released(), null before that and when taken already. Whoever takes it
  // destroys it: its destructor may need a lock (Python's) that engine threads must not wait for.
  // check_unchanged, which is likely to hold the owner too, is destroyed here and now.
  std::shared_ptr<void> TakeOwner();

  // ---- for the engine ----
  const SnapshotPlan& plan() const { return plan_; }
  Job& job() { return job_; }
  // False if the snapshot failed: the sources must not be read. True obliges to call EndCopy().
  bool BeginCopy();
  void EndCopy();
  // `size_bytes` more of the group lie in the arena; runs check_unchanged when they are its last.
  // REQUIRES: between BeginCopy() and EndCopy().
  Status GroupBytesCopied(uint32_t group, uint64_t size_bytes);
  void SetCrc(size_t extent, uint32_t crc) { crcs_[extent] = crc; }  // each extent has one writer
  void SetContent(size_t extent, const ContentDigest& content) { contents_[extent] = content; }
  void SetUnchanged(size_t extent) { extent_changed_[extent] = 0; }
  void MarkFinished();  // written or failed: status() says which

 private:
  struct Group {
    uint64_t bytes_left = 0;
    bool copied = false;
  };
  Status WaitUrgently(double timeout_s, const std::function<bool()>& reached);
  Status WaitUntil(double timeout_s, const std::function<bool()>& reached);
  void CountGroups();
  void Relax();
  bool SourcesReleasedLocked() const { return groups_left_ == 0 || (job_.failed() && active_copies_ == 0); }
  void MarkGroupCopiedLocked(Group* group);

  const uint64_t id_;
  SnapshotPlan plan_;
  const WaiterListener on_waiter_;
  Job job_;
  std::vector<uint32_t> crcs_;
  std::vector<ContentDigest> contents_;  // as many, or none without a key
  std::vector<uint8_t> extent_changed_;  // as many, or none without a base

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Group> groups_;  // guarded by mutex_
  size_t groups_left_ = 0;     // guarded by mutex_
  size_t active_copies_ = 0;   // guarded by mutex_
  bool is_hurried_ = false;    // guarded by mutex_
  bool finished_ = false;      // guarded by mutex_
  SnapshotTimes times_;        // guarded by mutex_
};

}  // namespace elastates

#endif  // ELASTATES_ENGINE_SNAPSHOT_H_
