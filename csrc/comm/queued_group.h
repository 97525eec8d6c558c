// QueuedGroup: a group whose operations are run one after another by a thread of its own.
//
// After Stop, which anybody may cause, the thread alone takes back what is posted and fails what is queued,
// and the group is settled. Sends and receives between two members stay outside that order: they are posted
// at once and matched by peer, tag and count. Owned by whoever holds a shared_ptr to it; the messenger must
// outlive it. Thread-safe.
#ifndef ELASTATES_COMM_QUEUED_GROUP_H_
#define ELASTATES_COMM_QUEUED_GROUP_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/thread.h"
#include "comm/group.h"
#include "comm/messenger.h"
#include "comm/shared/local_collectives.h"

namespace elastates {

class QueuedGroup : public Group {
 public:
  // Called once for every time that the group turns revoked, from any thread; must not block.
  using OnRevoked = std::function<void(const QueuedGroup& group, const View& view, const std::string& why)>;

  // REQUIRES: the messenger's own member is in `view`. `id` is equal on all members.
  QueuedGroup(Messenger& messenger, uint64_t id, std::string name, View view, OnRevoked on_revoked);
  ~QueuedGroup() override;  // closes

  uint64_t id() const { return id_; }
  const std::string& name() const { return name_; }
  Messenger& messenger() { return messenger_; }

  std::shared_ptr<const View> view() const override;
  int rank() const override;
  void Run(Body body, double timeout_s, Done done) override;
  void Revoke(const std::string& why) override;
  void RevokeSoon(const std::string& why) override;
  Status Install(View view) override;

  // RevokeSoon() if the group is still in this epoch; kept for Install() if it has yet to come to it.
  void RevokeEpochSoon(uint32_t epoch, const std::string& why);
  // From now on collectives go through shared memory in epochs whose members are all on this host. REQUIRES:
  // nothing has been run yet; all members do so; the neighbours live until the group is closed.
  void ShareMemory(Neighbours* neighbours);

  // A member that had taken its leave is gone: operations that wait for it fail, others do not.
  void NoteGone(MemberId member, const std::string& why);

  // Empty while the group is not revoked.
  std::string why_revoked() const;
  // Operations run or queued in this epoch.
  uint64_t sequence() const;

  // Between two members: the nth send of a tag meets the nth receive of it. `done` is called on the
  // messenger's thread, or at once with kRevoked while the group is revoked.
  void Send(int to, uint32_t tag, const void* data, size_t size_bytes, Done done);
  void Receive(int from, uint32_t tag, void* data, size_t size_bytes, Done done);

  // From whoever has sent, or is the first to send, with this tag; `done` is told the rank, -1 with an error.
  // The members are asked to say when they have sent more than has been received, by control messages: sends
  // cost nothing more. REQUIRES: all members have the group.
  using DoneFrom = std::function<void(Status status, int from)>;
  void ReceiveAny(uint32_t tag, void* data, size_t size_bytes, DoneFrom done);
  // What a member's ReceiveAny() asks, and the answer to one of ours; on the messenger's thread.
  void OnPairMessage(MemberId from, const std::string& content);
  using SendPairMessage = std::function<void(MemberId to, const std::string& content)>;
  void SetPairMessages(SendPairMessage send);  // REQUIRES: nothing has been run yet

  // Fails what is queued and running with kCancelled and ends the thread. Idempotent; not on its own thread.
  void Close();

 private:
  class RunningOperation;
  struct Queued {
    Body body;
    double timeout_s;
    Done done;
    uint64_t sequence;
  };
  enum class Phase { kOpen, kRevoked, kClosed };
  using PairCounts = std::map<std::pair<int, uint32_t>, uint64_t>;  // by peer and tag

  void WorkUntilClosed();
  void RunOne(std::unique_lock<std::mutex>& lock);
  // Takes back everything posted and fails everything queued.
  void Settle(std::unique_lock<std::mutex>& lock);
  // Leaves kOpen, or kRevoked for kClosed; false if there is nothing to leave.
  bool StopLocked(Phase phase, const std::string& why);
  void WaitUntilSettled(std::unique_lock<std::mutex>& lock);
  Status FailureLocked() const;
  // REQUIRES: mutex_ is held, the group is open. Errors: no such peer.
  Result<MessageAddress> NextPairAddressLocked(PairCounts& counts, int peer, uint32_t tag);

  struct AnyReceive {
    uint32_t tag;
    void* data;
    size_t size_bytes;
    DoneFrom done;
  };
  enum class PairMessage { kAsk, kOffer };
  void TellLocked(PairMessage kind, int to, uint32_t tag, uint64_t count);
  void MatchOffersLocked(uint32_t tag);
  void ForgetPairsLocked();

  Messenger& messenger_;  // not touched once closed
  const MemberId self_;
  const uint64_t id_;
  const std::string name_;
  const OnRevoked on_revoked_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // of what follows, all guarded by mutex_
  std::shared_ptr<const View> view_;
  int rank_ = 0;
  Phase phase_ = Phase::kOpen;
  std::string why_;
  bool is_settled_ = true;  // since the phase left kOpen nothing is posted or queued any more
  std::deque<Queued> queue_;
  uint64_t num_queued_ = 0;
  PairCounts num_sent_, num_received_;
  std::deque<AnyReceive> any_receives_;  // that nobody has sent to yet
  PairCounts offered_;                   // how many a peer has said that it has sent
  PairCounts asked_;                     // tell the peer when more than so many are sent
  std::vector<std::pair<MemberId, std::string>> early_pair_messages_;  // of newer epochs
  SendPairMessage send_pair_message_;
  std::map<MemberId, std::string> gone_;  // of the view, and why
  uint32_t revoked_epoch_ = 0;            // of a newer epoch than the view's, with its reason
  std::string revoked_epoch_why_;
  std::function<void()> wake_on_stop_;  // of the running operation

  std::unique_ptr<LocalCollectives> local_;  // of the thread alone, like the scratch
  std::unique_ptr<char, void (*)(void*)> scratch_;
  size_t scratch_size_bytes_ = 0;
  std::thread::id thread_id_;
  NamedThread thread_;  // last: it starts when all else is there
};

}  // namespace elastates

#endif  // ELASTATES_COMM_QUEUED_GROUP_H_
