// Agreement: how the members of one epoch come to one decision about the next view, although more of them die
// meanwhile. docs/protocol.md tells the protocol, and the counter-example behind each rule.
//
// A state machine: events go in, actions come out, the same for the same events. It has neither threads nor
// clocks; all it does by itself is to write this member's vote before an answer that rests on it is returned.
// Not thread-safe.
#ifndef ELASTATES_COMM_VIEW_AGREEMENT_H_
#define ELASTATES_COMM_VIEW_AGREEMENT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/group.h"
#include "comm/messenger.h"
#include "comm/view/decision.h"
#include "comm/view/note.h"
#include "comm/view/vote.h"

namespace elastates {

struct Action {
  enum class Kind {
    kSend,      // `content` to `member`
    kFence,     // kill `member` if anybody can; its death is told by OnLoss()
    kWitness,   // write `content` where the witness has `expected`; answer by OnWitness()
    kDecided,   // `content` is the decision, encoded; this member is in it
    kFenced,    // the others go on without this member, which must act no more; `content` says why
    kNoQuorum,  // too few are left to go on; `content` says why
  };
  Kind kind = Kind::kSend;
  MemberId member = 0;
  std::string content = {};
  std::string expected = {};  // kWitness
  uint32_t epoch = 0;         // kWitness: whose end it witnesses
};
using Actions = std::vector<Action>;

// What makes an agreement safe. All hold, always; tests break one at a time, to see that it is needed.
struct AgreementRules {
  bool vote_is_written_first = true;       // a vote is readable before anybody hears of it
  bool majority_decides = true;            // more than half of the old members without the proven dead
  bool highest_ballot_binds = true;        // a later leader takes over what may have been decided
  bool dead_promises_bind = true;          // no ballot counts below what a dead member has promised
  bool dead_are_unheard = true;            // nothing counts that arrives from a member known to be dead
  bool unread_deaths_need_consent = true;  // a death without a vote counts once all others know of it
  bool fence_comes_first = true;           // who is left out is killed before, wherever that is possible
  bool epochs_are_kept_apart = true;       // notes of another epoch are not taken for this one's
};

// Time is counted in ticks. A process that was stopped has missed ticks, and takes nobody for silent who was
// not: that is why these are not seconds.
struct AgreementOptions {
  int silent_ticks = 16;  // a member that has not joined, or answered, for so long is fenced
  int grace_ticks = 2;    // the same for one whose link broke
  int fence_ticks = 2;    // how long the proof of a death is waited for
  int beat_ticks = 2;     // between two beats of a leader
  bool has_witness = false;
  size_t most_decision_bytes = SIZE_MAX;  // newcomers with whom it would be longer wait for the next epoch
  AgreementRules rules;
};

class Agreement {
 public:
  // `decision` is what opened this epoch, encoded; empty for the first. `votes` must outlive this.
  // REQUIRES: 0 <= self < members of `view`.
  Agreement(View view, int self, AgreementOptions options, VoteStore& votes, std::string decision);

  // This member takes part, with this payload; without it, it only votes. Once.
  Actions Begin(const std::string& payload);
  // Somebody wants to be in the next view. Again with another payload: that one counts.
  Actions AddCandidate(const Candidate& candidate);
  void RemoveCandidate(MemberId id);
  Actions OnNote(int from, const Note& note);
  // `vote` of a dead member, where it could be read.
  Actions OnLoss(int rank, Loss loss, const std::optional<Vote>& vote);
  Actions OnTick();
  // `actual` is what the witness has now: what was asked for if `is_swapped`.
  Actions OnWitness(bool is_swapped, const std::string& actual);

  bool wants_ticks() const { return peers_[self_].payload.has_value() && !is_over_; }
  bool is_over() const { return is_over_; }  // decided, fenced, or without a quorum
  const View& view() const { return view_; }
  // The ranks that have neither joined nor died: for messages.
  std::string Missing() const;

 private:
  enum class Stage { kFollow, kCollect, kPrepare, kAccept };

  struct Peer {
    bool is_dead = false;
    bool is_unreachable = false;
    bool is_given_up = false;            // as a leader: it was silent for too long
    bool is_fenced = false;              // its death has been asked for: it is not in the next view
    std::optional<Vote> last_vote;       // of the dead
    std::optional<std::string> payload;  // of those who joined
    // While this member leads:
    int waited_ticks = 0;
    bool is_late = false;
    bool has_answered = false;  // in this stage
    Ballot accepted = 0;        // as it promised
    std::string value;
  };

  struct Count {
    int voters = 0;   // not dead, or dead with an unknown vote
    int living = 0;   // not dead
    int counted = 0;  // living ones that have what was asked for
  };

  // Voting (agreement.cc)
  void Answer(int to, const Note& note);
  bool Promise(Ballot ballot);
  bool Accept(Ballot ballot, const std::string& value);
  bool WriteVote(const Vote& vote);
  void Learn(const std::vector<Death>& deaths);
  void OnVoteOfTheDead(int rank);
  void Decide(const std::string& value);
  void Stop(Action::Kind kind, const std::string& why);

  // Who leads, and leading (agreement_leader.cc)
  int Leader() const;
  void Reconsider();
  void Advance();
  void StartCollecting();
  void TryPrepare();
  bool FenceTheLate(const Count& joined);
  void Prepare(bool with_witness);
  void TryPropose();
  void TryDecide();
  void GiveUpOnAnswers();
  void LeaderTick();
  void FollowerTick();
  void OnAnswer(int from, const Note& note);
  void OnRefusal(const Note& note);
  std::string ChooseValue() const;
  Decision OwnProposal() const;
  bool IsQuorum(const Count& count, bool with_witness) const;
  bool IsTie(const Count& count) const { return 2 * count.counted == count.voters; }
  bool HasJoined(const Peer& peer) const;
  bool IsLowestLiving() const;
  template <typename Predicate>
  Count CountPeers(Predicate predicate) const;
  Ballot HighestPromiseOfTheDead() const;
  bool StillHopes() const;
  bool IsBallotStale() const;
  void AskWitness(const Vote& vote);

  // Sending
  Note MakeNote(NoteKind kind) const;
  void Send(int to, const Note& note);
  void SendAll(const Note& note);  // to all that are not known to be dead
  Actions Take();

  const View view_;
  const int self_;
  const AgreementOptions options_;
  VoteStore& votes_;

  std::vector<Peer> peers_;  // by rank
  Vote vote_;
  std::map<MemberId, Candidate> candidates_;
  bool is_over_ = false;
  int told_leader_ = -1;  // whom this member has sent its join to
  int leader_silent_ticks_ = 0;
  uint32_t highest_round_ = 0;
  int unread_news_ = 0;  // how often it changed whose votes are unknown

  Stage stage_ = Stage::kFollow;
  Ballot ballot_ = 0;
  std::string proposed_;
  int ticks_ = 0;
  int fence_ticks_left_ = -1;  // -1: no fence has been asked for since collecting began
  int yield_ticks_left_ = -1;  // in a tie, before the side without the lowest member fences
  int retry_ticks_left_ = 0;
  int prepared_unread_news_ = 0;  // `unread_news_` when the ballot was prepared
  bool with_witness_ = false;
  int witness_silent_ticks_ = 0;
  bool witness_has_answered_ = false;
  bool witness_is_busy_ = false;
  Vote witness_vote_;         // that it is asked to write
  std::string witness_seen_;  // that it had last
  Actions actions_;
};

}  // namespace elastates

#endif  // ELASTATES_COMM_VIEW_AGREEMENT_H_
