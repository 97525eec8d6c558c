#include "comm/view/agreement.h"

#include <algorithm>
#include <utility>

namespace elastates {
namespace {

bool IsFromLeader(NoteKind kind) {
  return kind == NoteKind::kBeat || kind == NoteKind::kPrepare || kind == NoteKind::kAccept;
}

}  // namespace

Agreement::Agreement(View view, int self, AgreementOptions options, VoteStore& votes, std::string decision)
    : view_(std::move(view)), self_(self), options_(options), votes_(votes), peers_(view_.members.size()) {
  vote_.epoch = view_.epoch;
  vote_.decision = std::move(decision);
  WriteVote(vote_);  // from now on its death is proven with a vote, if with an empty one
}

Actions Agreement::Begin(const std::string& payload) {
  if (!is_over_) peers_[self_].payload = payload;
  Reconsider();
  return Take();
}

Actions Agreement::AddCandidate(const Candidate& candidate) {
  candidates_[candidate.member.id] = candidate;
  if (told_leader_ != self_) told_leader_ = -1;  // tell it anew
  Reconsider();
  return Take();
}

void Agreement::RemoveCandidate(MemberId id) { candidates_.erase(id); }

Actions Agreement::OnNote(int from, const Note& note) {
  Peer& peer = peers_[from];
  const bool is_heard = !peer.is_dead || !options_.rules.dead_are_unheard;
  if (is_over_ || !is_heard) return Take();
  peer.is_unreachable = false;
  if (IsFromLeader(note.kind) && !peer.is_fenced) peer.is_given_up = false;
  if (IsFromLeader(note.kind) && from == Leader()) leader_silent_ticks_ = 0;
  Learn(note.deaths);
  if (!is_over_) Answer(from, note);
  Reconsider();
  return Take();
}

void Agreement::Answer(int from, const Note& note) {
  switch (note.kind) {
    case NoteKind::kJoin:
      peers_[from].payload = note.value;
      for (const Candidate& candidate : note.candidates) candidates_.emplace(candidate.member.id, candidate);
      break;
    case NoteKind::kPrepare: {
      const bool is_promised = Promise(note.ballot);
      Note answer = MakeNote(is_promised ? NoteKind::kPromise : NoteKind::kRefuse);
      answer.ballot = vote_.promised;
      answer.accepted = is_promised ? vote_.accepted : note.ballot;
      answer.value = is_promised ? vote_.value : "";
      Send(from, answer);
      break;
    }
    case NoteKind::kAccept: {
      const bool is_accepted = Accept(note.ballot, note.value);
      Note answer = MakeNote(is_accepted ? NoteKind::kAccepted : NoteKind::kRefuse);
      answer.ballot = vote_.promised;
      answer.accepted = note.ballot;
      Send(from, answer);
      break;
    }
    case NoteKind::kPromise:
    case NoteKind::kAccepted:
      OnAnswer(from, note);
      break;
    case NoteKind::kRefuse:
      OnRefusal(note);
      break;
    case NoteKind::kDecided:
      Decide(note.value);
      break;
    case NoteKind::kStop:
      if (from == Leader()) Stop(Action::Kind::kNoQuorum, note.value);
      break;
    case NoteKind::kBeat:
      if (from == told_leader_) told_leader_ = -1;  // it may have missed the join: it was not there yet
      break;
    case NoteKind::kDeath:
    case NoteKind::kAsk:
    case NoteKind::kWelcome:
      break;  // what there was to learn has been learnt
  }
}

Actions Agreement::OnLoss(int rank, Loss loss, const std::optional<Vote>& vote) {
  Peer& peer = peers_[rank];
  if (is_over_ || peer.is_dead) return Take();
  peer.is_unreachable = true;
  if (loss == Loss::kDead) {
    Learn({{rank, vote}});
    Note news = MakeNote(NoteKind::kDeath);
    if (!is_over_) SendAll(news);
  }
  Reconsider();
  return Take();
}

Actions Agreement::OnTick() {
  if (!wants_ticks()) return Take();
  if (Leader() == self_) {
    LeaderTick();
  } else {
    FollowerTick();
  }
  Reconsider();
  return Take();
}

// Every note tells what its sender knows of the dead. So a member that is counted without its vote is counted
// with it as soon as a living one has it: nothing was decided then that rests on its vote being unknown, for
// that takes the answers of all who live, this one's with the vote in it among them.
void Agreement::Learn(const std::vector<Death>& deaths) {
  for (const Death& death : deaths) {
    if (death.rank == self_ || death.rank < 0 || death.rank >= static_cast<int>(peers_.size())) continue;
    Peer& peer = peers_[death.rank];
    if (peer.is_dead && (peer.last_vote || !death.vote)) continue;
    if (peer.is_dead || !death.vote) ++unread_news_;
    peer.is_dead = true;
    peer.last_vote = death.vote;
    if (peer.last_vote) OnVoteOfTheDead(death.rank);
    if (is_over_) return;
  }
}

void Agreement::OnVoteOfTheDead(int rank) {
  Vote& vote = *peers_[rank].last_vote;
  if (vote.epoch < view_.epoch) vote = Vote{view_.epoch, 0, 0, "", ""};  // it never came so far
  if (vote.epoch == view_.epoch + 1) {
    Decide(std::string(vote.decision));  // it had gone on
  } else if (vote.epoch > view_.epoch + 1) {
    Stop(Action::Kind::kFenced, "the group has come to epoch " + std::to_string(vote.epoch) + " without it");
  } else {
    highest_round_ = std::max(highest_round_, RoundOf(vote.promised));
  }
}

bool Agreement::Promise(Ballot ballot) {
  highest_round_ = std::max(highest_round_, RoundOf(ballot));
  if (ballot < vote_.promised) return false;
  Vote vote = vote_;
  vote.promised = ballot;
  return WriteVote(vote);
}

bool Agreement::Accept(Ballot ballot, const std::string& value) {
  highest_round_ = std::max(highest_round_, RoundOf(ballot));
  if (ballot < vote_.promised) return false;
  return WriteVote({view_.epoch, ballot, ballot, value, vote_.decision});
}

bool Agreement::WriteVote(const Vote& vote) {
  vote_ = vote;
  if (!options_.rules.vote_is_written_first) return true;
  const Status written = votes_.Write(Encode(vote_));
  if (written.ok()) return true;
  Stop(Action::Kind::kNoQuorum, "its vote could not be written: " + written.message());
  return false;
}

void Agreement::Decide(const std::string& value) {
  if (is_over_) return;
  Result<Decision> decision = DecodeDecision(value);
  if (!decision.ok()) return Stop(Action::Kind::kNoQuorum, decision.status().message());
  Note news = MakeNote(NoteKind::kDecided);
  news.value = value;
  news.deaths.clear();
  const bool is_leader = stage_ == Stage::kAccept;
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    const bool has_asked = peers_[rank].payload.has_value();
    if (rank != self_ && !peers_[rank].is_dead && (is_leader || has_asked)) Send(rank, news);
  }
  if (!decision.value().Includes(view_.members[self_].id))
    return Stop(Action::Kind::kFenced, "the others agreed on a view without it");
  is_over_ = true;
  actions_.push_back({Action::Kind::kDecided, 0, value});
}

void Agreement::Stop(Action::Kind kind, const std::string& why) {
  if (is_over_) return;
  is_over_ = true;
  actions_.push_back({kind, 0, why});
}

std::string Agreement::Missing() const {
  std::string ranks;
  for (size_t rank = 0; rank < peers_.size(); ++rank) {
    if (peers_[rank].is_dead || HasJoined(peers_[rank])) continue;
    ranks += (ranks.empty() ? "" : ", ") + std::to_string(rank);
  }
  return ranks;
}

Note Agreement::MakeNote(NoteKind kind) const {
  Note note{kind};
  note.epoch = view_.epoch;
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    if (peers_[rank].is_dead) note.deaths.push_back({rank, peers_[rank].last_vote});
  }
  return note;
}

void Agreement::Send(int to, const Note& note) {
  actions_.push_back({Action::Kind::kSend, view_.members[to].id, Encode(note)});
}

void Agreement::SendAll(const Note& note) {
  for (int rank = 0; rank < static_cast<int>(peers_.size()); ++rank) {
    if (rank != self_ && !peers_[rank].is_dead) Send(rank, note);
  }
}

Actions Agreement::Take() { return std::exchange(actions_, {}); }

}  // namespace elastates
