// Membership: one process's part in the succession of a group's views: an Agreement for the present epoch,
// and what it takes to come from one epoch to the next.
//
// Like Agreement a state machine without threads and clocks; not thread-safe. Members are named by their ids,
// and notes come and go as bytes.
#ifndef ELASTATES_COMM_VIEW_MEMBERSHIP_H_
#define ELASTATES_COMM_VIEW_MEMBERSHIP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/view/agreement.h"

namespace elastates {

class Membership {
 public:
  // `votes` must outlive this.
  Membership(MemberId self, AgreementOptions options, VoteStore& votes);

  // The first view, which all its members know by themselves. kInvalidArgument if this process is not in it.
  // One who joins never calls it: a welcome brings the view.
  Status Open(View view);

  // See Agreement. REQUIRES: has_view().
  Actions Begin(const std::string& payload);
  Actions OnTick();
  Actions OnWitness(uint32_t epoch, bool is_swapped, const std::string& actual);

  // Who wants to join is named in every agreement until it is in, or lost.
  Actions AddCandidate(const Candidate& candidate);

  // At any time. What is no note is an error of the sender's, and is dropped.
  Result<Actions> OnMessage(MemberId from, const std::string& content);
  Actions OnLoss(MemberId member, Loss loss, const std::string& proof);

  bool has_view() const { return agreement_ != nullptr; }
  const View& view() const { return agreement_->view(); }  // REQUIRES: has_view()
  bool wants_ticks() const { return has_view() && agreement_->wants_ticks(); }
  bool is_over() const { return is_over_; }  // fenced, or without a quorum
  std::string Missing() const { return has_view() ? agreement_->Missing() : ""; }
  // Whether somebody in the present view has died, or cannot be reached: then the next agreement is due.
  bool HasLostMembers() const;
  // How many want to join and can be reached.
  size_t num_candidates() const { return candidates_.size(); }
  // What made the present view of the one before; empty in the first epoch.
  const std::string& last_decision() const { return last_decision_; }

 private:
  struct Lost {
    Loss loss = Loss::kUnreachable;
    std::string proof;
  };

  void Enter(View view, const std::string& decision);
  void GoOn(const std::string& decision);
  void Do(Actions actions);
  void Replay();
  void OnNoteOfThePast(MemberId from, const Note& note);
  void OnNoteOfTheFuture(MemberId from, const Note& note);
  void OnWelcome(const Note& note);
  void WelcomeJoined(const Decision& decision, const View& view);
  void TellLoss(MemberId member, const Lost& lost);
  void Send(MemberId to, const Note& note);
  bool IsDead(MemberId member) const;
  int RankOf(MemberId member) const;  // -1: not in the present view
  Actions Take() { return std::exchange(actions_, {}); }

  const MemberId self_;
  const AgreementOptions options_;
  VoteStore& votes_;
  std::unique_ptr<Agreement> agreement_;  // null until there is a view
  std::string last_decision_;
  bool is_over_ = false;
  std::map<uint32_t, std::string> decisions_;     // by the epoch that they ended, for laggards
  std::map<MemberId, Lost> lost_;                 // in whatever epoch
  std::vector<std::pair<MemberId, Note>> early_;  // of epochs to come
  std::map<MemberId, Candidate> candidates_;
  Actions actions_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_MEMBERSHIP_H_
