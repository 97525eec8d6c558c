#include "comm/hub.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "comm/loss_text.h"

namespace elastates {
namespace {

constexpr char kRevokeTopic[] = "revoke";
constexpr char kFarewellTopic[] = "farewell";
constexpr char kPairTopic[] = "pair";

// Those about groups that have been closed here are kept as well, until newer ones push them out.
constexpr size_t kMostEarlyMessages = 1024;

}  // namespace

uint64_t GroupId(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned char byte : name) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

Hub::Hub(Messenger& messenger, Neighbours* neighbours)
    : messenger_(messenger), neighbours_(neighbours), pid_(getpid()) {
  for (const bool is_revocation : {true, false}) {
    HandleControl(is_revocation ? kRevokeTopic : kPairTopic,
                  [this, is_revocation](MemberId from, const std::string& content) {
                    const uint64_t group = std::strtoull(content.c_str(), nullptr, 10);
                    OnGroupMessage({group, is_revocation, from, content});
                  });
  }
  HandleControl(kFarewellTopic, [this](MemberId from, const std::string&) {
    std::lock_guard<std::mutex> lock(mutex_);
    has_left_.insert(from);
  });
  Messenger::Observer observer;
  observer.on_control = [this](MemberId from, const std::string& content) { OnControl(from, content); };
  observer.on_loss = [this](MemberId peer, Loss loss, const std::string& why, const std::string& proof) {
    OnLoss(peer, loss, why, proof);
  };
  messenger_.SetObserver(std::move(observer));
}

// Threads are not forked along: there is nobody to join, and whatever waited for something waits for ever.
Hub::~Hub() {
  CloseAll();
  if (getpid() == pid_) return;
  static auto* left = new std::vector<std::map<uint64_t, std::shared_ptr<QueuedGroup>>>;
  left->push_back(std::move(groups_));
}

void Hub::CloseAll() {
  if (getpid() != pid_) return;
  for (const auto& group : LivingGroups()) CloseGroup(group);
}

Result<std::shared_ptr<QueuedGroup>> Hub::MakeGroup(const std::string& name, View view) {
  bool is_member = false;
  for (const Member& member : view.members) is_member |= member == messenger_.self();
  if (!is_member) {
    return Status(StatusCode::kInvalidArgument, "this process is not among the members of group " + name);
  }
  const uint64_t id = GroupId(name);
  std::shared_ptr<QueuedGroup> group;
  std::vector<GroupMessage> early;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (groups_.count(id) > 0)
      return Status(StatusCode::kInvalidArgument, "there is a group named " + name + " already");
    const auto announce = [this](const QueuedGroup& revoked, const View& revoked_view,
                                 const std::string& why) { Announce(revoked, revoked_view, why); };
    group = std::make_shared<QueuedGroup>(messenger_, id, name, std::move(view), announce);
    if (neighbours_ != nullptr) group->ShareMemory(neighbours_);
    group->SetPairMessages(
        [this](MemberId to, const std::string& content) { SendControl(to, kPairTopic, content); });
    groups_[id] = group;
    early = TakeEarlyLocked(id);
  }
  for (const GroupMessage& message : early) Tell(*group, message);
  Remember(*group->view());
  RevokeIfLost(*group);
  return group;
}

void Hub::CloseGroup(const std::shared_ptr<QueuedGroup>& group) {
  if (getpid() != pid_) return;
  group->Close();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = groups_.find(group->id());
  if (found != groups_.end() && found->second == group) groups_.erase(found);
}

Status Hub::Install(QueuedGroup& group, View view) {
  const Status status = group.Install(std::move(view));
  if (!status.ok()) return status;
  Remember(*group.view());
  RevokeIfLost(group);
  return status;
}

void Hub::HandleControl(const std::string& topic, ControlHandler handler) {
  std::lock_guard<std::mutex> lock(mutex_);
  control_handlers_[topic] = std::move(handler);
}

void Hub::SendControl(MemberId to, const std::string& topic, const std::string& content) {
  messenger_.SendControl(to, topic + " " + content);
}

void Hub::HandleLosses(LossHandler handler) {
  std::lock_guard<std::mutex> lock(mutex_);
  loss_handlers_.push_back(std::move(handler));
}

std::map<MemberId, LostMember> Hub::losses() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return losses_;
}

void Hub::Remember(const View& view) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const Member& member : view.members) known_.insert(member.id);
}

void Hub::Leave() {
  std::set<MemberId> peers;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    peers = known_;
  }
  peers.erase(messenger_.self().id);
  for (MemberId peer : peers) SendControl(peer, kFarewellTopic, "");
}

void Hub::OnControl(MemberId from, const std::string& content) {
  const size_t end = content.find(' ');
  ControlHandler handler;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = control_handlers_.find(content.substr(0, end));
    if (found == control_handlers_.end()) return;  // of a topic that only newer ones know
    handler = found->second;
  }
  handler(from, end == std::string::npos ? "" : content.substr(end + 1));
}

void Hub::OnLoss(MemberId peer, Loss loss, const std::string& why, const std::string& proof) {
  const LostMember lost{peer, loss, why, proof};
  std::vector<LossHandler> handlers;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    losses_[peer] = lost;
    handlers = loss_handlers_;
  }
  for (const auto& group : LivingGroups()) RevokeIfLost(*group);
  for (const LossHandler& handler : handlers) handler(lost);
}

void Hub::RevokeIfLost(QueuedGroup& group) {
  const std::shared_ptr<const View> view = group.view();
  std::vector<int> ranks;
  std::vector<LostMember> gone;
  std::string why;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t rank = 0; rank < view->members.size(); ++rank) {
      const auto found = losses_.find(view->members[rank].id);
      if (found == losses_.end()) continue;
      if (has_left_.count(found->first) > 0) {
        gone.push_back(found->second);
      } else {
        ranks.push_back(static_cast<int>(rank));
        why = found->second.why;
      }
    }
  }
  for (const LostMember& lost : gone) group.NoteGone(lost.id, lost.why);
  if (!ranks.empty()) group.RevokeEpochSoon(view->epoch, DescribeLoss(*view, ranks, why));
}

void Hub::Announce(const QueuedGroup& group, const View& view, const std::string& why) {
  const std::string content = std::to_string(group.id()) + " " + std::to_string(view.epoch) + " " + why;
  for (const Member& member : view.members) {
    if (!(member == messenger_.self())) SendControl(member.id, kRevokeTopic, content);
  }
}

// Other members may have made the group, and given it up, before this one comes to it.
void Hub::OnGroupMessage(GroupMessage message) {
  std::shared_ptr<QueuedGroup> group;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = groups_.find(message.group);
    if (found != groups_.end()) {
      group = found->second;
    } else {
      early_.push_back(std::move(message));
      if (early_.size() > kMostEarlyMessages) early_.pop_front();
    }
  }
  if (group) Tell(*group, message);
}

void Hub::Tell(QueuedGroup& group, const GroupMessage& message) {
  if (!message.is_revocation) return group.OnPairMessage(message.from, message.content);
  char* end = nullptr;
  std::strtoull(message.content.c_str(), &end, 10);
  const uint32_t epoch = static_cast<uint32_t>(std::strtoul(end, &end, 10));
  group.RevokeEpochSoon(epoch, *end == ' ' ? end + 1 : end);
}

std::vector<Hub::GroupMessage> Hub::TakeEarlyLocked(uint64_t group_id) {
  const auto taken = std::stable_partition(
      early_.begin(), early_.end(), [group_id](const GroupMessage& kept) { return kept.group != group_id; });
  std::vector<GroupMessage> messages(std::make_move_iterator(taken), std::make_move_iterator(early_.end()));
  early_.erase(taken, early_.end());
  return messages;
}

std::vector<std::shared_ptr<QueuedGroup>> Hub::LivingGroups() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::shared_ptr<QueuedGroup>> groups;
  for (const auto& [id, group] : groups_) groups.push_back(group);
  return groups;
}

}  // namespace elastates
