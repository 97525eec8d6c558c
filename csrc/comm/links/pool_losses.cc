// How links end.
#include <utility>

#include "comm/links/pool.h"
#include "comm/links/process.h"

namespace elastates {
namespace {

constexpr size_t kMaxSegmentsOfDead = 64;

}  // namespace

void Pool::OnControl(MemberId peer, const std::string& content) {
  if (observer_.on_control) observer_.on_control(peer, content);
}

void Pool::OnLinkEnded(MemberId id, const std::string& why) {
  Peer* peer = Find(id);
  if (peer == nullptr || peer->is_lost) return;
  Lose(peer, Loss::kUnreachable, why, "");
}

// Seen by the kernel: nothing more can come, but what has come is still in the sockets.
void Pool::OnProcessEnded(MemberId id) {
  Peer* peer = Find(id);
  if (peer == nullptr) return;
  if (peer->link != nullptr) peer->link->ReadLastWords();
  Lose(peer, Loss::kDead, "its process has ended", "");
}

void Pool::ReportDead(MemberId id, const std::string& why, const std::string& proof) {
  loop_.Post([this, id, why, proof] {
    if (has_ended_.load() || id == self_.id) return;
    Member unknown;
    unknown.id = id;
    Lose(FindOrAdd(unknown), Loss::kDead, why, proof);
  });
}

// The news last: whoever is told finds nothing of the peer's in progress.
void Pool::Lose(Peer* peer, Loss loss, const std::string& why, const std::string& proof) {
  if (loss == Loss::kDead ? peer->is_dead : peer->is_lost) return;
  peer->is_dead = loss == Loss::kDead;
  if (!peer->is_lost) {
    peer->is_lost = true;
    peer->loss = Status(StatusCode::kPeerLost, "lost " + Describe(peer->member) + ": " + why);
    StopDialling(peer);
    if (peer->link != nullptr) {
      peer->link->Close();
      peer->link->Complete([](const Outgoing&) { return true; }, peer->loss);
      loop_.RunAfter(0, [gone = std::shared_ptr<Link>(std::move(peer->link))] {});  // it may be on the stack
    }
    mailbox_.LosePeer(peer->member.id, peer->loss);
  }
  if (peer->is_dead) Bury(peer);
  if (observer_.on_loss) observer_.on_loss(peer->member.id, loss, why, proof);
  CheckConnects();
}

// A job of many deaths must not run out of descriptors: the pidfds go at once, the segments of the oldest.
void Pool::Bury(Peer* peer) {
  if (peer->watch != nullptr) {
    peer->watch->Stop();
    loop_.Discard(std::move(peer->watch));
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Facts& facts = facts_[peer->member.id];
    facts.is_dead = true;
    facts.pidfd = OwnedFd();
  }
  dead_.push_back(peer->member.id);
  if (dead_.size() <= kMaxSegmentsOfDead) return;
  ForgetNow(dead_.front());
  dead_.pop_front();
}

Status Pool::Kill(MemberId id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = facts_.find(id);
  if (found != facts_.end() && found->second.is_dead) return Status::Ok();
  Member member;
  member.id = id;
  if (found == facts_.end() || !found->second.pidfd)
    return Status(StatusCode::kInvalidArgument, Describe(member) + " is not a process of this host to kill");
  return KillThrough(found->second.pidfd.get());
}

void Pool::Forget(MemberId id) {
  loop_.Post([this, id] {
    const Peer* peer = has_ended_.load() ? nullptr : Find(id);
    if (peer != nullptr && peer->is_lost) ForgetNow(id);
  });
}

// The pidfd of one that is lost and not dead stays: its death may yet be seen.
void Pool::ForgetNow(MemberId id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = facts_.find(id);
  if (found != facts_.end()) found->second.segment = OwnedFd();
}

}  // namespace elastates
