// The part of an Agreement that leads: it waits for all, prepares a ballot, proposes, and sees it accepted.
#include <algorithm>
#include <utility>

#include "comm/view/agreement.h"

namespace elastates {

template <typename Predicate>
Agreement::Count Agreement::CountPeers(Predicate predicate) const {
  Count count;
  for (const Peer& peer : peers_) {
    count.voters += !peer.is_dead || !peer.last_vote;
    count.living += !peer.is_dead;
    count.counted += !peer.is_dead && predicate(peer);
  }
  return count;
}

// The lowest member that is neither dead nor was silent for too long.
int Agreement::Leader() const {
  int rank = 0;
  while (rank < self_ && (peers_[rank].is_dead || peers_[rank].is_given_up)) ++rank;
  return rank;
}

void Agreement::Reconsider() {
  if (!wants_ticks()) return;
  const int leader = Leader();
  if (leader != self_) stage_ = Stage::kFollow;
  if (leader == told_leader_) return Advance();
  told_leader_ = leader;
  leader_silent_ticks_ = 0;
  if (leader == self_) {
    StartCollecting();
    return Advance();
  }
  Note join = MakeNote(NoteKind::kJoin);
  join.value = *peers_[self_].payload;
  for (const auto& [id, candidate] : candidates_) join.candidates.push_back(candidate);
  Send(leader, join);
}

void Agreement::Advance() {
  if (stage_ == Stage::kCollect) TryPrepare();
  if (stage_ == Stage::kPrepare) TryPropose();
  if (stage_ == Stage::kAccept) TryDecide();
}

void Agreement::StartCollecting() {
  stage_ = Stage::kCollect;
  fence_ticks_left_ = yield_ticks_left_ = -1;
  retry_ticks_left_ = 0;
  for (Peer& peer : peers_) {
    peer.waited_ticks = 0;
    peer.is_late = false;
  }
  SendAll(MakeNote(NoteKind::kBeat));
}

bool Agreement::HasJoined(const Peer& peer) const { return peer.payload && !peer.is_fenced && !peer.is_late; }

bool Agreement::IsLowestLiving() const {
  return std::all_of(peers_.begin(), peers_.begin() + self_, [](const Peer& peer) { return peer.is_dead; });
}

// More than half of those whose votes count, or exactly half of them and the witness. Or all who live: who is
// dead cannot act on anything, even where nobody knows what it voted.
bool Agreement::IsQuorum(const Count& count, bool with_witness) const {
  if (!options_.rules.majority_decides) return count.counted > 0;
  if (2 * count.counted > count.voters || (IsTie(count) && with_witness)) return true;
  return count.counted == count.living;
}

void Agreement::TryPrepare() {
  bool is_anybody_late = false;
  for (const Peer& peer : peers_) {
    if (peer.is_dead || HasJoined(peer)) continue;
    if (!peer.is_late && !peer.is_fenced) return;  // it has time yet
    is_anybody_late = true;
  }
  if (!is_anybody_late) return Prepare(false);
  const Count joined = CountPeers([this](const Peer& peer) { return HasJoined(peer); });
  const bool is_majority = IsQuorum(joined, false);
  // A side that has lost its majority kills nobody: the others may be well, and the majority.
  if ((is_majority || IsTie(joined)) && !FenceTheLate(joined)) return;
  if (is_majority) return Prepare(false);
  if (IsTie(joined) && options_.has_witness) return Prepare(true);
  if (StillHopes()) return;
  const std::string why = "only " + std::to_string(joined.counted) + " of " + std::to_string(joined.voters) +
                          " members are together; nobody hears of rank " + Missing();
  Note stop = MakeNote(NoteKind::kStop);
  stop.value = why;
  SendAll(stop);
  Stop(Action::Kind::kNoQuorum, why);
}

// False while there is something to wait for. Two halves that cannot hear each other might kill each other:
// the one without the lowest member waits first.
bool Agreement::FenceTheLate(const Count& joined) {
  if (!options_.rules.fence_comes_first) return true;
  if (IsTie(joined) && !IsLowestLiving() && yield_ticks_left_ < 0)
    yield_ticks_left_ = 2 * options_.fence_ticks;
  if (yield_ticks_left_ > 0) return false;
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    Peer& peer = peers_[rank];
    if (peer.is_dead || HasJoined(peer) || peer.is_fenced) continue;
    peer.is_fenced = true;
    fence_ticks_left_ = options_.fence_ticks;
    actions_.push_back({Action::Kind::kFence, view_.members[rank].id, "it has been silent"});
  }
  return fence_ticks_left_ <= 0;
}

// Nobody stops before the time is up: news of deaths, or a cable that is put back, may change the count.
bool Agreement::StillHopes() const {
  return std::any_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
    return !peer.is_dead && !HasJoined(peer) && peer.waited_ticks < options_.silent_ticks;
  });
}

// Where deaths without votes count, answers do only as far as those who gave them knew of the same ones: else
// one of them may still listen to the dead, or know a vote.
bool Agreement::IsBallotStale() const {
  if (options_.rules.dead_promises_bind && HighestPromiseOfTheDead() > ballot_) return true;
  return options_.rules.unread_deaths_need_consent && unread_news_ != prepared_unread_news_;
}

Ballot Agreement::HighestPromiseOfTheDead() const {
  Ballot highest = 0;
  for (const Peer& peer : peers_) {
    if (peer.is_dead && peer.last_vote) highest = std::max(highest, peer.last_vote->promised);
  }
  return highest;
}

void Agreement::Prepare(bool with_witness) {
  ballot_ = MakeBallot(++highest_round_, self_);
  stage_ = Stage::kPrepare;
  with_witness_ = with_witness;
  witness_has_answered_ = false;
  witness_silent_ticks_ = 0;
  retry_ticks_left_ = 0;
  prepared_unread_news_ = unread_news_;
  for (Peer& peer : peers_) {
    peer.has_answered = peer.is_late = false;
    peer.waited_ticks = 0;
  }
  if (!Promise(ballot_)) return;
  peers_[self_].has_answered = true;
  peers_[self_].accepted = vote_.accepted;
  peers_[self_].value = vote_.value;
  Note note = MakeNote(NoteKind::kPrepare);
  note.ballot = ballot_;
  SendAll(note);
  if (with_witness_) AskWitness({view_.epoch, ballot_, 0, "", ""});
}

void Agreement::TryPropose() {
  if (retry_ticks_left_ == 0 && IsBallotStale()) Prepare(with_witness_);
  const Count promised = CountPeers([](const Peer& peer) { return peer.has_answered; });
  if (retry_ticks_left_ > 0 || !IsQuorum(promised, witness_has_answered_)) return;
  proposed_ = ChooseValue();
  stage_ = Stage::kAccept;
  witness_has_answered_ = false;
  for (Peer& peer : peers_) {
    peer.has_answered = false;
    peer.waited_ticks = 0;
  }
  if (!Accept(ballot_, proposed_)) return;
  peers_[self_].has_answered = true;
  Note note = MakeNote(NoteKind::kAccept);
  note.ballot = ballot_;
  note.value = proposed_;
  SendAll(note);
  if (with_witness_) AskWitness({view_.epoch, ballot_, ballot_, proposed_, ""});
}

void Agreement::TryDecide() {
  if (retry_ticks_left_ > 0) return;
  if (IsBallotStale()) return Prepare(with_witness_);
  const Count accepted = CountPeers([](const Peer& peer) { return peer.has_answered; });
  if (IsQuorum(accepted, witness_has_answered_)) Decide(proposed_);
}

// What was accepted under the highest ballot may have been decided already; only if there is nothing of the
// kind a leader is free to propose what it likes.
std::string Agreement::ChooseValue() const {
  Ballot highest = 0;
  std::string value;
  const auto consider = [&](Ballot accepted, const std::string& candidate) {
    if (accepted <= highest) return;
    highest = accepted;
    value = candidate;
  };
  for (const Peer& peer : peers_) {
    if (peer.is_dead && peer.last_vote) consider(peer.last_vote->accepted, peer.last_vote->value);
    if (!peer.is_dead && peer.has_answered) consider(peer.accepted, peer.value);
  }
  if (with_witness_) {
    Result<Vote> vote = DecodeVote(witness_seen_);
    if (vote.ok()) consider(vote.value().accepted, vote.value().value);
  }
  return highest > 0 && options_.rules.highest_ballot_binds ? value : Encode(OwnProposal());
}

Decision Agreement::OwnProposal() const {
  Decision decision{view_.epoch + 1, {}};
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    const Peer& peer = peers_[rank];
    if (peer.is_dead || !HasJoined(peer)) continue;
    Member member;
    member.id = view_.members[rank].id;
    decision.seats.push_back({rank, member, *peer.payload});
  }
  for (const auto& [id, candidate] : candidates_) {
    decision.seats.push_back({Seat::kJoined, candidate.member, candidate.payload});
    if (Encode(decision).size() > options_.most_decision_bytes) decision.seats.pop_back();
  }
  return decision;
}

void Agreement::OnAnswer(int from, const Note& note) {
  const Stage asked = note.kind == NoteKind::kPromise ? Stage::kPrepare : Stage::kAccept;
  if (stage_ != asked || note.ballot != ballot_) return;
  Peer& peer = peers_[from];
  peer.has_answered = true;
  if (asked == Stage::kAccept) return;
  peer.accepted = note.accepted;
  peer.value = note.value;
}

// Somebody else leads too, or did until it died.
void Agreement::OnRefusal(const Note& note) {
  highest_round_ = std::max(highest_round_, RoundOf(note.ballot));
  if ((stage_ != Stage::kPrepare && stage_ != Stage::kAccept) || note.accepted != ballot_) return;
  const int rival = LeaderOf(note.ballot);
  const bool is_known = rival >= 0 && rival < static_cast<int>(peers_.size());
  if (!is_known || rival == self_ || peers_[rival].is_dead) return Prepare(with_witness_);
  retry_ticks_left_ = 1 + self_;  // not both at once, again and again
}

void Agreement::LeaderTick() {
  if (++ticks_ % options_.beat_ticks == 0) SendAll(MakeNote(NoteKind::kBeat));
  if (fence_ticks_left_ > 0) --fence_ticks_left_;
  if (yield_ticks_left_ > 0) --yield_ticks_left_;
  if (retry_ticks_left_ > 0 && --retry_ticks_left_ == 0) return Prepare(with_witness_);
  const Count joined = CountPeers([this](const Peer& peer) { return HasJoined(peer); });
  const bool may_go_on = 2 * joined.counted >= joined.voters;
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    Peer& peer = peers_[rank];
    const bool is_awaited = stage_ == Stage::kCollect ? !HasJoined(peer) : !peer.has_answered;
    if (peer.is_dead || static_cast<int>(rank) == self_ || !is_awaited) continue;
    // A minority waits longer: news of deaths may make it a majority.
    const bool is_short = may_go_on && (peer.is_unreachable || peer.is_given_up);
    if (++peer.waited_ticks >= (is_short ? options_.grace_ticks : options_.silent_ticks)) peer.is_late = true;
  }
  if (stage_ == Stage::kPrepare || stage_ == Stage::kAccept) GiveUpOnAnswers();
}

// Who joined and then fell silent holds nothing up, unless its vote is needed.
void Agreement::GiveUpOnAnswers() {
  if (with_witness_ && !witness_has_answered_ && ++witness_silent_ticks_ >= options_.silent_ticks)
    return Stop(Action::Kind::kNoQuorum,
                "exactly half of the members are together, and the witness is silent");
  const bool is_anybody_awaited = std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
    return !peer.is_dead && !peer.has_answered && !peer.is_late && !peer.is_fenced;
  });
  const Count answered = CountPeers([](const Peer& peer) { return peer.has_answered; });
  if (is_anybody_awaited || IsQuorum(answered, with_witness_)) return;
  stage_ = Stage::kCollect;
  fence_ticks_left_ = yield_ticks_left_ = -1;
}

// A host that is cut off takes all of its members away: those behind a leader whose links are broken as well
// get no time of their own.
void Agreement::FollowerTick() {
  int leader = Leader();
  const int limit = peers_[leader].is_unreachable ? options_.grace_ticks : options_.silent_ticks;
  if (++leader_silent_ticks_ < limit) return;
  do {
    peers_[leader].is_given_up = true;
    leader = Leader();
  } while (leader != self_ && peers_[leader].is_unreachable);
  leader_silent_ticks_ = 0;
}

void Agreement::AskWitness(const Vote& vote) {
  witness_vote_ = vote;
  // A witness keeps what it accepted when it promises more.
  Result<Vote> seen = DecodeVote(witness_seen_);
  if (vote.accepted == 0 && seen.ok()) {
    witness_vote_.accepted = seen.value().accepted;
    witness_vote_.value = seen.value().value;
  }
  if (std::exchange(witness_is_busy_, true)) return;
  actions_.push_back({Action::Kind::kWitness, 0, Encode(witness_vote_), witness_seen_, view_.epoch});
}

Actions Agreement::OnWitness(bool is_swapped, const std::string& actual) {
  witness_is_busy_ = false;
  witness_seen_ = actual;
  const bool is_asked = with_witness_ && (stage_ == Stage::kPrepare || stage_ == Stage::kAccept);
  if (is_over_ || !is_asked) return Take();
  Result<Vote> seen = DecodeVote(actual);
  const Vote has = seen.ok() ? std::move(seen).value() : Vote{};
  highest_round_ = std::max(highest_round_, RoundOf(has.promised));
  const Ballot accepted = stage_ == Stage::kAccept ? ballot_ : has.accepted;
  if (is_swapped && has.promised == ballot_ && has.accepted == accepted) {
    witness_has_answered_ = true;
  } else if (has.promised > ballot_) {
    retry_ticks_left_ = 1 + self_;
  } else {
    AskWitness(stage_ == Stage::kAccept ? Vote{view_.epoch, ballot_, ballot_, proposed_, ""}
                                        : Vote{view_.epoch, ballot_, 0, "", ""});
  }
  Reconsider();
  return Take();
}

}  // namespace elastates
