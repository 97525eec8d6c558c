// Hub: all groups of one process over its links. It observes the links for them: a lost member revokes every
// group that it is in, here and, by a message to all members, on those who have not seen the loss themselves.
//
// Owned by the process; must outlive its groups, and the messenger must outlive it. Thread-safe.
#ifndef ELASTATES_COMM_HUB_H_
#define ELASTATES_COMM_HUB_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "comm/group.h"
#include "comm/messenger.h"
#include "comm/queued_group.h"

namespace elastates {

// A member that the links have lost, and what is known about it.
struct LostMember {
  MemberId id = 0;
  Loss loss = Loss::kUnreachable;
  std::string why;
  std::string proof;  // what it left for the others, empty if nothing
};

class Hub {
 public:
  // Both run on the messenger's thread, one at a time, and must not block.
  using ControlHandler = std::function<void(MemberId from, const std::string& content)>;
  using LossHandler = std::function<void(const LostMember& lost)>;

  // Becomes the messenger's observer. With `neighbours` all groups share memory where they can.
  explicit Hub(Messenger& messenger, Neighbours* neighbours = nullptr);
  ~Hub();  // in a forked child, which has no part in the groups, it leaves them as they are
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  Messenger& messenger() { return messenger_; }

  // A group over links that are there already; equal names on all members, and unlike those of other groups.
  // kInvalidArgument if this process is not among the members or already has a living group of this name.
  Result<std::shared_ptr<QueuedGroup>> MakeGroup(const std::string& name, View view);
  // Ends the group here; others notice nothing unless they need this process. Not on the messenger's thread.
  void CloseGroup(const std::shared_ptr<QueuedGroup>& group);
  void CloseAll();

  // Group::Install(), and revokes it again at once if a member of the new view is lost already.
  Status Install(QueuedGroup& group, View view);

  // Control messages by topic, one word; the handler replaces the topic's last one. Handlers of losses are
  // called in the order in which they were added, after the groups have been revoked.
  void HandleControl(const std::string& topic, ControlHandler handler);
  void SendControl(MemberId to, const std::string& topic, const std::string& content);
  void HandleLosses(LossHandler handler);

  // What has been lost so far, by member; an entry turns from kUnreachable into kDead if that is proven
  // later.
  std::map<MemberId, LostMember> losses() const;

  // Says farewell to all members that there ever was a group with: losing this process no longer revokes
  // theirs, unless an operation still needs it.
  void Leave();

 private:
  // A control message about a group; its content begins with the group's id.
  struct GroupMessage {
    uint64_t group = 0;
    bool is_revocation = false;  // else about messages between two members
    MemberId from = 0;
    std::string content;
  };

  void OnControl(MemberId from, const std::string& content);
  void OnLoss(MemberId peer, Loss loss, const std::string& why, const std::string& proof);
  void OnGroupMessage(GroupMessage message);
  static void Tell(QueuedGroup& group, const GroupMessage& message);
  std::vector<GroupMessage> TakeEarlyLocked(uint64_t group_id);
  void RevokeIfLost(QueuedGroup& group);
  void Remember(const View& view);
  // Tells the other members that a group is revoked.
  void Announce(const QueuedGroup& group, const View& view, const std::string& why);
  std::vector<std::shared_ptr<QueuedGroup>> LivingGroups() const;

  Messenger& messenger_;
  Neighbours* const neighbours_;
  const int pid_;
  mutable std::mutex mutex_;  // guards what follows; never held while a group or a handler is called
  std::map<uint64_t, std::shared_ptr<QueuedGroup>> groups_;
  std::map<std::string, ControlHandler> control_handlers_;
  std::vector<LossHandler> loss_handlers_;
  std::map<MemberId, LostMember> losses_;
  std::set<MemberId> known_;        // members of groups, past ones included
  std::set<MemberId> has_left_;     // who has said farewell
  std::deque<GroupMessage> early_;  // about groups that this process has not made yet; the oldest first
};

// What stands for a group in messages: a hash of its name.
uint64_t GroupId(const std::string& name);

}  // namespace elastates

#endif  // ELASTATES_COMM_HUB_H_
